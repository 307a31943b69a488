"""Decoders that have no family of ours run through transformers on the paged cache, or are refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.models.transformers import TransformersModel
from tests.engine.tiny import make_tiny, paged_greedy, reference_greedy

GENERATOR = torch.Generator().manual_seed(11)
PROMPTS = [torch.randint(0, 256, (length,), generator=GENERATOR).tolist() for length in (3, 41, 16)]

SMALL = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2 with another activation": (
        "gemma2",
        {"sliding_window": 12, "head_dim": 16, "hidden_activation": "gelu", "final_logit_softcapping": None},
    ),
    "gemma4: keys of another shape in each kind of layer": (
        "gemma4_text",
        {"sliding_window": 12, "head_dim": 16, "global_head_dim": 32, "num_kv_shared_layers": 0}
        | {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
        | {"vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 0},
    ),
    "gpt_oss: sinks, experts": ("gpt_oss", {"sliding_window": 12, "head_dim": 16, "num_local_experts": 4}),
    "phi3: fused projections, window": ("phi3", {"sliding_window": 20}),
    "gpt_neox: partial rotation": ("gpt_neox", {}),
    "gpt2: learned positions": ("gpt2", {}),
    "olmo2": ("olmo2", {}),
    "cohere: scaled logits": ("cohere", {}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "phimoe: a window that only the mask knows": ("phimoe", {"sliding_window": 12, "num_local_experts": 4}),
    "deepseek_v3: keys longer than values": (
        "deepseek_v3",
        {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
        | {"v_head_dim": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "llama with another activation": ("llama", {"hidden_act": "gelu"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_those_of_transformers(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    folder = make_tiny(family, tmp_path, **overrides)
    kernels = TorchKernels(torch.float32)
    model = load_model(resolve(str(folder)), kernels=kernels)

    assert isinstance(model, TransformersModel)
    expected = reference_greedy(folder, PROMPTS, 10)
    assert len(set(model.config.caches)) == (2 if family == "gemma4_text" else 1)
    for chunk in (1000, 7):
        assert paged_greedy(model, kernels, PROMPTS, 10, chunk) == expected


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"model_type": "mamba"}, "layers of a kind that is not supported: linear_attention"),
        ({"model_type": "qwen3_next"}, "layers of a kind that is not supported: linear_attention"),
        ({"model_type": "llama4_text"}, "layers of a kind that is not supported: chunked_attention"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "clip"}, "no causal language model"),
        ({**SMALL, "model_type": "bert"}, "BertSelfAttention of transformers is not causal"),
        (
            {**SMALL, "model_type": "nemotron", "num_key_value_heads": 4},
            "NemotronAttention of transformers does not hand on",
        ),
        ({**SMALL, "model_type": "llama", "hidden_act": "gelu", "head_dim": 7}, "does not take this config of llama"),
        ({"model_type": "bloom"}, "does not let the attention of bloom be replaced"),
        ({"model_type": "no_such_model"}, "know the model_type 'no_such_model'"),
    ],
)
def test_models_that_cannot_run_on_the_paged_cache_are_refused_with_the_reason(shape: Any, reason: str) -> None:
    folder = resolve("random:" + json.dumps(shape))
    with pytest.raises(LoadError, match=reason):
        load_model(folder, kernels=TorchKernels(torch.float32), dtype="float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_tokens_meet_outside_of_attention_is_refused(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve(str(make_tiny("gpt2", tmp_path)))
    load_model(folder, kernels=TorchKernels(dtype))
    mlp = GPT2MLP.forward
    monkeypatch.setattr(GPT2MLP, "forward", lambda self, x: mlp(self, x + x.roll(1, dims=1)))
    with pytest.raises(LoadError, match="tokens meet outside of attention"):
        load_model(folder, kernels=TorchKernels(dtype))


def test_a_checkpoint_that_does_not_fit_names_the_tensor(tmp_path: Path) -> None:
    folder = make_tiny("gpt2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 4}))
    with pytest.raises(LoadError, match=r"missing tensors transformer\.h\.3\.attn\.c_attn\.bias"):
        load_model(resolve(str(folder)), kernels=TorchKernels(torch.float32))


def test_long_contexts_whose_angles_depend_on_other_sequences_are_cut_off(tmp_path: Path) -> None:
    factors = [1.0] * 8
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 8.0}
    folder = make_tiny("phi3", tmp_path, rope_parameters=rope, original_max_position_embeddings=32)
    assert load_model(resolve(str(folder)), kernels=TorchKernels(torch.float32)).config.max_positions == 32
