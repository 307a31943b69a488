"""A model that a GPU has no room for is refused before its weights are read, with the sum of what it would take."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from headwater.pick.memory import weight_bytes
from headwater.pick.models import named
from headwater.pick.workload import workload
from headwater_engine.config import EngineSettings
from headwater_engine.distributed.ranks import ALONE, Alone, Ranks
from headwater_engine.errors import KVCacheSizeError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.shapes import SHAPES
from headwater_engine.models.source import ModelFolder, resolve
from headwater_engine.models.weighing import weigh
from headwater_engine.worker import loading
from headwater_engine.worker.memory import GIB


class OneOf(Alone):
    """A rank among others, to whom it says nothing while it loads."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def tensors() -> dict[int, int]:
    """Bytes of all that there are, by where they begin; of a file that is mapped, what of it is looked at."""
    gc.collect()
    found: dict[int, int] = {}
    for each in (each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)):
        found[each.data_ptr()] = max(each.nbytes, found.get(each.data_ptr(), 0))
    return found


def weighed(folder: ModelFolder, ranks: Ranks = ALONE, dtype: torch.dtype = torch.float32) -> int:
    return weigh(folder, None, dtype=dtype, ranks=ranks)[0]


def source(**overrides: Any) -> str:
    return "random:" + json.dumps({**SHAPES["tiny"], "vocab_size": 1001, **overrides})


VARIANTS = {
    "tied": source(),
    "biases": source(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "norms of heads": source(model_type="qwen3", head_dim=32),
    "gemma": source(model_type="gemma2", head_dim=16, tie_word_embeddings=False),
}


@pytest.mark.parametrize("ranks", [ALONE, OneOf(0, 2), OneOf(2, 3)], ids=lambda ranks: f"{ranks.rank} of {ranks.size}")
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_what_the_loaded_model_has(variant: str, ranks: Ranks) -> None:
    """A vocabulary that does not divide, a key head that two ranks have, and biases among it."""
    folder = resolve(VARIANTS[variant])
    before = tensors()
    model = load_model(folder, kernels=TorchKernels(torch.bfloat16), ranks=ranks)
    found = sum(size for at, size in tensors().items() if at not in before)
    expected, specs = weigh(folder, None, dtype=torch.bfloat16, ranks=ranks)
    assert expected == pytest.approx(found, rel=0.03), "but for biases, which are counted whole"
    assert tuple(specs) == model.config.caches


def test_nothing_is_made_or_read_for_it() -> None:
    """The weights would be 16 GB: as many as pick says."""
    shape = named("meta-llama/Llama-3.1-8B")
    assert shape is not None
    expected = weight_bytes(shape, workload({"model": "meta-llama/Llama-3.1-8B", "gpu": "h100"}))
    before = tensors()
    size = weighed(resolve("random:llama-3.1-8b"), dtype=torch.bfloat16)
    assert size == 2 * 8_030_261_248 == pytest.approx(expected, rel=1e-3)
    assert sum(each for at, each in tensors().items() if at not in before) < 2**20
    shares = [weighed(resolve("random:llama-3.1-8b"), OneOf(rank, 4), torch.bfloat16) for rank in range(4)]
    assert shares == [pytest.approx(size / 4, rel=1e-3)] * 4


def test_what_runs_by_transformers_is_as_large_as_its_files_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "olmo2"}')
    save_file({"one": torch.zeros(30, 20), "other": torch.zeros(7)}, tmp_path / "model.safetensors")
    folder = resolve(str(tmp_path))
    assert weighed(folder) == 4 * (30 * 20 + 7)
    assert weighed(folder, dtype=torch.bfloat16) == 2 * (30 * 20 + 7)


def load(monkeypatch: pytest.MonkeyPatch, source: str, total: int, **settings: Any) -> None:
    """On a GPU of so many bytes, of which others have a gibibyte."""
    gpu = torch.device("cuda", 0)

    def loads(*_: object, **__: object) -> None:
        raise LoadingError

    monkeypatch.setattr(loading, "find_device", lambda choice, number: gpu)
    monkeypatch.setattr(loading, "select", lambda dtype, device, kv_dtype: TorchKernels(dtype))
    monkeypatch.setattr(loading, "load_model", loads)
    monkeypatch.setattr(loading, "load_pooled", loads)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - GIB, total))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    asked = EngineSettings(model=source, **settings)
    loading.load(asked, lambda fraction, phase: None, lambda: None)


class LoadingError(Exception):
    pass


def test_it_is_refused_before_it_is_loaded_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KVCacheSizeError) as refused:
        load(monkeypatch, "random:llama-3.1-8b", 16 * GIB, max_model_len=8192)
    assert str(refused.value) == (
        "The model does not fit: 14.96 GiB of weights, + 1.00 GiB of KV for one request of 8,192 tokens, + 1.00 GiB "
        "that CUDA and others have = 16.96 GiB > 16.00 GiB x 0.9 = 14.40 GiB. Share it among more GPUs "
        "(--tensor-parallel-size), or take larger ones."
    )


def test_what_lacks_room_for_a_request_only_is_told_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        KVCacheSizeError, match=r"= 17\.96 GiB > 19\.00 GiB x 0\.9 = 17\.10 GiB\. Lower --max-model-len"
    ):
        load(monkeypatch, "random:llama-3.1-8b", 19 * GIB, max_model_len=16384)
    with pytest.raises(LoadingError):
        load(monkeypatch, "random:llama-3.1-8b", 19 * GIB, max_model_len=8192)


def test_settings_that_go_beyond_utilization_are_left_to_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadingError):
        load(monkeypatch, "random:llama-3.1-8b", 17 * GIB, kv_cache_gib=0.5)
    with pytest.raises(KVCacheSizeError, match=r"= 15\.96 GiB > 15\.00 GiB"):
        load(monkeypatch, "random:llama-3.1-8b", 15 * GIB, kv_cache_gib=0.5)


def test_models_that_make_vectors_are_weighed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadingError):
        load(monkeypatch, "random:tiny", 16 * GIB, runner="pooling")
    with pytest.raises(
        KVCacheSizeError, match=r"The model does not fit: 0\.00 GiB of weights, .* \+ 1\.00 GiB that CUDA"
    ):
        load(monkeypatch, "random:tiny", GIB + (1 << 10), runner="pooling")
