"""Every native family generates the greedy tokens that transformers generates in float32, however a batch is cut.

On a GPU where there is one (`make gpu-test`), else on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headwater.pick.capabilities import CAPABILITIES
from headwater.pick.config import family_of
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.families import FAMILIES
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from tests.engine import tiny
from tests.engine.devices import on_gpu_else
from tests.engine.tiny import make_tiny, paged_greedy, reference_greedy

GENERATOR = torch.Generator().manual_seed(7)
PROMPTS = [torch.randint(0, 256, (length,), generator=GENERATOR).tolist() for length in (1, 37, 16, 90)]
NEW_TOKENS = 12

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama without grouped queries": ("llama", {"num_key_value_heads": 4}),
    "llama with one key head": ("llama", {"num_key_value_heads": 1, "head_dim": 32}),
    "llama in shards": ("llama", {"shards": 3}),
    "rope llama3": ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64}}),
    "rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "rope yarn": ("llama", {"rope_parameters": YARN}),
    "rope yarn with mscale": ("qwen2", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}}),
    "rope yarn untruncated": ("llama", {"rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.3}}),
    "rope dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 96},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 20}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows above": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3 with a window": (
        "qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 20}),
    "gemma2 without caps": (
        "gemma2",
        {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
    ),
    "gemma3": ("gemma3_text", {"head_dim": 32, "sliding_window": 20, "sliding_window_pattern": 2}),
    "gemma3 stretched": (
        "gemma3_text",
        {"head_dim": 16, "sliding_window": 12, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"rope_parameters": GEMMA3_ROPE, "query_pre_attn_scalar": 30},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_those_of_transformers(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    folder = make_tiny(family, tmp_path, **overrides)
    expected = reference_greedy(folder, PROMPTS, NEW_TOKENS)
    kernels = on_gpu_else(TorchKernels(torch.float32))
    model = load_model(resolve(str(folder)), kernels=kernels)

    assert len({token for tokens in expected for token in tokens}) > 10, "a model that repeats itself shows nothing"
    for chunk in (1000, 7):
        assert paged_greedy(model, kernels, PROMPTS, NEW_TOKENS, chunk) == expected
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        assert paged_greedy(model, kernels, [prompt], NEW_TOKENS, 1000) == [tokens]


def test_configs_older_than_transformers_5_say_the_same(tmp_path: Path) -> None:
    """Gemma 3's two rotations had names of their own."""
    family, overrides = VARIANTS["gemma3 stretched"]
    folder = make_tiny(family, tmp_path, **overrides)
    kernels = on_gpu_else(TorchKernels(torch.float32))
    answers = []
    for older in (False, True):
        if older:
            write_as_transformers_4(folder / "config.json")
        model = load_model(resolve(str(folder)), kernels=kernels)
        answers.append(paged_greedy(model, kernels, PROMPTS, NEW_TOKENS, 7))
        assert model.config.max_positions == 256
    assert answers[0] == answers[1]


def write_as_transformers_4(file: Path) -> None:
    config = json.loads(file.read_text())
    ropes = config.pop("rope_parameters")
    far, near = ropes["full_attention"], ropes["sliding_attention"]
    config |= {"rope_theta": far["rope_theta"], "rope_local_base_freq": near["rope_theta"]}
    config["rope_scaling"] = {"rope_type": far["rope_type"], "factor": far["factor"]}
    file.write_text(json.dumps(config))


def test_every_family_is_tested_and_told_of() -> None:
    """Who adds one finds here what was forgotten."""
    families = set(FAMILIES)
    assert {family for family, _ in VARIANTS.values()} == families, "against transformers, in VARIANTS"
    assert set(tiny.FAMILIES) == families, "through the whole engine, in tests/engine/tiny.py"
    text = (Path(__file__).parents[2] / "docs/engine.md").read_text()
    assert {family for family in families if f"| `{family}` |" in text} == families, "in the table of docs/engine.md"
    ours = next(each for each in CAPABILITIES if each.backend == "headwater")
    assert ours.families == {family_of(family) for family in families} | {"smollm"}, (
        "in headwater/pick/capabilities.py; SmolLM's model_type is llama"
    )
