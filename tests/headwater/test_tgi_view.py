"""TGI 3 reads folders with transformers 4: what transformers 5 writes is shown to it in the words of that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headwater import backends
from headwater.backends.base import Pod
from headwater.backends.views import tgi
from headwater.backends.views.tgi import UnreadableError, write_view
from tests.headwater.test_backends import deployment

NEW_CONFIG = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0},
}
NEW_TOKENIZER = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]}


def folder(path: Path, config: Any = None, tokenizer: Any = None) -> Path:
    made = path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(NEW_CONFIG if config is None else config))
    (made / "tokenizer_config.json").write_text(json.dumps(NEW_TOKENIZER if tokenizer is None else tokenizer))
    (made / "tokenizer.json").write_text("{}")
    (made / "model.safetensors").write_text("weights")
    (made / "chat_template.jinja").write_text("{{ messages }}")
    return made


def seen(path: Path, name: str = "config.json") -> dict[str, Any]:
    write_view(path, path.parent / "view")
    return dict(json.loads((path.parent / "view" / name).read_text()))


def test_the_base_of_the_rotation_is_where_transformers_4_looks_for_it(tmp_path: Path) -> None:
    config = seen(folder(tmp_path))
    scaling = {"rope_type": "llama3", "type": "llama3", "factor": 8.0}
    assert config == {"model_type": "llama", "torch_dtype": "bfloat16", "rope_theta": 500000.0, "rope_scaling": scaling}


def test_a_rotation_that_is_not_scaled_says_so(tmp_path: Path) -> None:
    config = seen(folder(tmp_path, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}))
    assert config == {"rope_theta": 1e6, "rope_scaling": None}


def test_models_within_a_model_are_said_as_before_too(tmp_path: Path) -> None:
    text = {"model_type": "llama", "rope_parameters": {"rope_theta": 7.0}}
    config = seen(folder(tmp_path, {"model_type": "llava", "text_config": text}))
    assert config["text_config"] == {"model_type": "llama", "rope_theta": 7.0, "rope_scaling": None}


def test_layers_that_differ_are_said_where_there_is_a_word_for_it(tmp_path: Path) -> None:
    by_layer = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    config = seen(folder(tmp_path, {"model_type": "gemma3_text", "rope_parameters": by_layer}))
    assert (config["rope_theta"], config["rope_local_base_freq"], config["rope_scaling"]) == (1e6, 1e4, None)


def test_the_tokenizer_has_a_class_and_a_template(tmp_path: Path) -> None:
    assert seen(folder(tmp_path), "tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
        "chat_template": "{{ messages }}",
    }


def test_what_need_not_be_written_is_linked_and_a_view_can_be_made_again(tmp_path: Path) -> None:
    model = folder(tmp_path, {"rope_theta": 5.0}, {"chat_template": "own"})
    for _ in range(2):
        write_view(model, tmp_path / "view")
        for each in model.iterdir():
            assert (tmp_path / "view" / each.name).readlink() == each


@pytest.mark.parametrize(
    ("config", "tokenizer", "reason"),
    [
        (
            {"model_type": "laguna", "rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
            {},
            "differ by layer",
        ),
        ({"rope_parameters": 5}, {}, "no JSON object"),
        ([], {}, "config.json is no JSON object"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(config: Any, tokenizer: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=reason):
        write_view(folder(tmp_path, config, tokenizer), tmp_path / "view")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(UnreadableError, match="no JSON"):
        write_view(tmp_path / "model", tmp_path / "view")


def test_a_template_alone_is_seen_too(tmp_path: Path) -> None:
    model = folder(tmp_path)
    (model / "tokenizer_config.json").unlink()
    assert seen(model, "tokenizer_config.json") == {"chat_template": "{{ messages }}"}


def test_a_tokenizer_without_its_file_is_refused(tmp_path: Path) -> None:
    model = folder(tmp_path)
    (model / "tokenizer.json").unlink()
    with pytest.raises(UnreadableError, match=r"no tokenizer\.json"):
        write_view(model, tmp_path / "view")


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_in_a_pod_the_launcher_is_started_on_the_view_by_python_alone(tmp_path: Path) -> None:
    model, view = folder(tmp_path), tmp_path / "view"
    pod = Pod(model=str(model), mounted=True, port=8000, events_port=None, drain=60, views=True)
    argv = backends.get("tgi").launch(deployment("file:///models/m"), pod).argv
    assert argv[0] == "python3"
    assert argv[3] == str(model)
    assert argv[5:8] == ["text-generation-launcher", "--model-id", argv[4]]
    assert "$(" not in argv[2], "Kubernetes would take it for a variable"
    # Isolated: with nothing of ours to import.
    ended = run(["python3", "-I", *argv[1:4], str(view), "cat", str(view / "config.json")])
    assert json.loads(ended.stdout)["rope_theta"] == 500000.0
    for damage in ("config.json", "chat_template.jinja"):
        (model / damage).write_bytes(b"\xff")
        failed = run(["python3", "-I", *argv[1:4], str(view), "cat"])
        assert (failed.returncode, f"TGI cannot be shown {model}" in failed.stderr) == (1, True)
        (model / damage).write_text("{}")


def test_without_a_folder_or_before_views_the_launcher_is_started_as_it_was() -> None:
    for mounted, views in ((False, True), (True, False)):
        pod = Pod(model="hf://o/m", mounted=mounted, port=8000, events_port=None, drain=60, views=views)
        assert backends.get("tgi").launch(deployment(), pod).argv[0] == "text-generation-launcher"


def test_a_local_folder_is_shown_so_too() -> None:
    command = backends.get("tgi").command(deployment("file:///models/m"), port=8001)
    assert command[1:4] == ["-m", tgi.__name__, "/models/m"]
    assert command[command.index("--model-id") + 1] == command[4]
