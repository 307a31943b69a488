"""Tiny models through the whole engine with Triton's kernels: on a GPU, or in Triton's interpreter without one.

What `tests/engine/gpu` does at length on a GPU is here short enough for the interpreter.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate
from headwater_engine.core.scheduler import Scheduler
from headwater_engine.core.step import Pending, Step
from headwater_engine.errors import DeviceError, LoadError
from headwater_engine.kernels import find_device
from headwater_engine.kernels.interface import AttentionBatch, LayerCache
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.config import ModelConfig
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.worker import ModelWorker
from tests.engine.greedy import greedy_answers, make_engine
from tests.engine.tiny import make_tiny, reference_greedy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPTS = [[7, 201, 33, 9, 58, 140, 22, 6], [91, 4, 250]]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {}), ("mistral", {"sliding_window": 5}), ("qwen3", {"head_dim": 32}), ("olmo2", {})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_greedy_tokens_are_those_of_transformers(family: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """olmo2 runs by the modules of transformers, with our attention in them."""
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    from headwater_engine.kernels.gpu import TritonKernels

    folder = make_tiny(family, tmp_path, num_hidden_layers=2, **overrides)
    kernels = TritonKernels(torch.float32, DEVICE)
    model = load_model(resolve(str(folder)), kernels=kernels)
    engine = make_engine(model, kernels, 7, max_num_seqs=2, max_batched_tokens=6, reuse=True)
    worker = engine._worker
    assert isinstance(worker, ModelWorker)
    worker.warm_up(budget=3, sequences=2, longest=20, spare_block=7)
    assert greedy_answers(engine, PROMPTS, 4) == reference_greedy(folder, PROMPTS, 4)


def test_a_device_is_named_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(LoadError, match=r"--device cuda: torch .* finds no NVIDIA GPU"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:0")
    assert find_device("cpu") == torch.device("cpu")


def test_a_failed_gpu_is_no_requests_fault() -> None:
    """Nothing is tried again on it: the error goes up, and ends the process."""

    class Broken:
        calls = 0

        def launch(self, step: Step) -> None:
            self.calls += 1
            raise DeviceError("The GPU has failed: an illegal memory access was encountered")

        def sample(self) -> Pending:
            raise NotImplementedError

    worker = Broken()
    scheduler = Scheduler(PrefixCache(8, 16), max_num_seqs=2, max_batched_tokens=64)
    engine = Engine(scheduler, worker, max_model_len=64, vocab_size=10)
    for name in "ab":
        engine.add(Generate(id=name, prompt=[1, 2], params=SamplingParams(max_tokens=1)))
    with pytest.raises(DeviceError):
        engine.step()
    assert worker.calls == 1


def test_an_error_is_the_gpus_where_the_gpu_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that failed answers every call with its first error; one that did not has nothing to do with this one."""
    kernels = TorchKernels()
    kernels.device = torch.device("cuda")
    worker = ModelWorker(Unloaded(), [], kernels, seats=1, longest=16)
    nothing = Step(1, left=[], seated=[], blocks=[], drafts=[], spans=[])

    def fail(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with pytest.raises(ValueError):
        worker.launch(nothing)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(
        DeviceError, match=r"^The GPU has failed: CUDA error: an illegal memory access was encountered$"
    ):
        worker.launch(nothing)


class Unloaded:
    """A model that no step gets to."""

    config = ModelConfig(8, (), 0)
    recordable = True

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError
