"""`headwater pick`: what it prints, and how it fails."""

import json

import pytest

from headwater import cli
from headwater.cli.parser import USAGE_ERROR

LLAMA = ("--model", "hf://meta-llama/Llama-3.1-8B-Instruct")


def run(*arguments: str) -> int:
    try:
        return cli.main(["pick", *arguments])
    except SystemExit as end:
        return int(end.code or 0)


def test_a_person_is_shown_places_obstacles_and_arithmetic(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(*LLAMA, "--params", "8b", "--family", "llama", "--gpu", "l4") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Llama-3.1-8B on 1 x L4: 32 requests at once, 1,000 + 250 tokens each")
    assert "1  vllm          1 x 1  The boring default" in shown
    assert "4  headwater     1 x 1  Our own engine" in shown
    assert "-  tensorrt-llm         It is deployed on Hopper and Blackwell GPUs only; L4 is Ada" in shown
    assert "8.0B x 2 bytes = 15.0 GiB" in shown
    assert "32 layers x 8 heads x 256 x 2 bytes = 128.0 KiB" in shown
    assert "kubectl apply -f -" in shown


def test_a_size_alone_is_enough_but_not_for_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", "8b") == 0
    assert "estimated" in capsys.readouterr().out
    assert run("--model", "8b", "--yaml") == USAGE_ERROR
    assert "--model: must say where the weights are" in capsys.readouterr().err


def test_yaml_says_why_in_comments(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*LLAMA, "--gpus", "4", "--mixed", "--shared-prefix", "0.8", "--yaml") == 0
    text = capsys.readouterr().out
    assert text.startswith("# sglang: 80% of the prompt is shared")
    assert "\n---\n# vllm: The boring default" in text
    assert "two deployments serve one name" in text


def test_json_holds_all_that_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*LLAMA, "--build-time", "1h", "--image", "lab/trt:1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {
        "workload",
        "model",
        "accelerator",
        "measured",
        "places",
        "excluded",
        "parts",
        "deployments",
        "notes",
    }
    assert found["workload"]["inputTokens"] == 1000
    assert found["parts"][0]["kvBytesPerToken"] == 131072
    assert found["deployments"][0]["spec"]["backend"] == {
        "type": "tensorrt-llm",
        "image": "lab/trt:1",
        "args": ["--backend", "tensorrt"],
    }


def test_figures_of_an_accelerator_that_are_estimated_are_marked_wherever_they_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    said = "L20: 44.5 GiB (estimated), 900 GB/s, 119 TFLOPS in 16 bits (estimated), link 50 GB/s (estimated)"
    flags = (*LLAMA, "--gpu", "l20", "--bandwidth", "900")
    for way in ((), ("--explain",), ("--yaml",), ("--json",)):
        assert run(*flags, *way) == 0
        shown = capsys.readouterr().out
        assert said in shown, way
    assert json.loads(shown)["accelerator"]["estimated"] == ["memory", "arithmetic", "link"]
    assert json.loads(shown)["accelerator"]["sources"] == {"bandwidth": "flag"}
    assert run(*LLAMA, "--json") == 0
    device = json.loads(capsys.readouterr().out)["accelerator"]
    assert device["estimated"] == []
    assert all(source.startswith("https://") for source in device["sources"].values())


def test_an_impossible_workload_is_refused_with_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", "Llama-3.1-70B", "--gpu", "l4", "--gpus", "4") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "headwater pick: 70.6B x 2 bytes = 131.4 GiB of weights, + 0.4 GiB of KV for one request of 1,250 tokens, "
        "+ 4 x 1.7 GiB for vllm itself = 138.7 GiB > 4 x 22 GiB x 0.9 = 79.2 GiB; try --quantization fp8 or --gpus 8\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "headwater pick: --params: it is required"),
        (("--model", "8b", "--gpus", "0"), 'headwater pick: --gpus: must be greater than or equal to 1, found "0"'),
        (("--model", "8b", "--shared-prefix", "x"), "headwater pick: --shared-prefix: must be a number"),
        (("--model", "8b", "--gpu", "tpu"), "did you mean tpu-v5e or tpu-v5p or tpu-v6e or tpu-v7?"),
        (("--model", "8b", "--concurency", "3"), "unknown argument --concurency; did you mean --concurrency?"),
        (("--model", "8b", "--yaml", "--json"), "not allowed with argument --yaml"),
    ],
)
def test_a_wrong_flag_is_named_in_one_sentence(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == USAGE_ERROR
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_our_engine_is_told_how_large_its_cache_is(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model HuggingFaceTB/SmolLM2-135M-Instruct --gpu cpu --concurrency 100 --json"
    assert run(*flags.split()) == 0
    spec = json.loads(capsys.readouterr().out)["deployments"][0]["spec"]
    # 100 requests x 1,250 tokens x 45 KiB = 5.4 GiB, beside 0.3 GiB of weights and a reserve of 2 GiB.
    assert spec["backend"]["args"] == ["--kv-cache-gib", "6", "--max-num-seqs", "100"]
    assert spec["resources"]["limits"] == {"memory": "9Gi"}


def test_a_replica_over_machines_gets_its_gpus_in_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", "deepseek-ai/DeepSeek-R1", "--gpus", "16", "--json") == 0
    spec = json.loads(capsys.readouterr().out)["deployments"][0]["spec"]
    assert spec["parallelism"] == {"tensor": 8, "pipeline": 2, "nodes": 2}
    assert spec["resources"] == {"limits": {"nvidia.com/gpu": 8}}


def test_transformers_is_given_the_one_name_that_it_answers_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", "lab/odd-3b", "--broad-models", "--image", "lab/hf:5", "--json") == 0
    spec = json.loads(capsys.readouterr().out)["deployments"][0]["spec"]
    assert spec["model"] == {"source": "hf://lab/odd-3b", "aliases": ["lab/odd-3b"]}
    assert "context" not in spec
