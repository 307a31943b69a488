"""A GPU that fails in the middle of answers ends the engine process, which says why and tries nothing again.

The process is the real one; its model has no weights, and a stand-in for a GPU below it.
"""

import asyncio
import os
import sys

import pytest
import torch
from torch import Tensor

from headwater_engine.core import process
from headwater_engine.core.messages import FinishReason, Generate, Output
from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import AttentionBatch, LayerCache
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server.client import EngineClient
from headwater_engine.worker import loading
from headwater_engine.worker.device import device_checked
from headwater_engine.worker.loading import Loaded
from headwater_engine.worker.worker import ModelWorker
from tests.engine.front import HANG, settings_of
from tests.engine.test_overlap import Counting

PASSES = 5
"""Forward passes, the last of which fails."""
FAILURES = {
    "failed": (
        RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."),
        "The GPU has failed: CUDA error: an illegal memory access was encountered",
    ),
    "full": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee ..."),
        "The GPU has no memory for a step: CUDA out of memory. Tried to allocate 2.00 GiB. "
        "Lower --gpu-memory-utilization.",
    ),
}


class Breaking(Counting):
    """A model that counts, until its GPU breaks."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(broken=99)
        self.failure = failure
        self.passes = 0

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        self.passes += 1
        if self.passes >= PASSES:
            raise self.failure
        return super().forward(tokens, batch, caches, rows)


@pytest.mark.parametrize("how", FAILURES)
async def test_open_requests_get_the_error_and_nothing_is_tried_again(
    how: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    said: dict[str, list[Output]] = {"a": [], "b": []}
    async with asyncio.timeout(HANG), EngineClient(settings_of(), [sys.executable, __file__, how]) as client:
        watching = asyncio.create_task(client.watch())
        await client.until_ready()
        for name, outputs in said.items():
            params = SamplingParams(max_tokens=50, temperature=0)
            client.ask(Generate(id=name, prompt=[1], params=params), outputs.append)
        while client.open_requests:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert client.failure == FAILURES[how][1]
        await watching
        assert client.group.processes[0].returncode == 1
    for outputs in said.values():
        assert (outputs[-1].finish_reason, outputs[-1].error) == (FinishReason.ERROR, FAILURES[how][1])
        assert sum(len(output.tokens) for output in outputs) > 0, "it had begun"
    assert f"{PASSES} passes" in capfd.readouterr().err


def test_a_model_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was a trial step that found no room."""

    def load_too_much(*args: object) -> Loaded:
        with device_checked(torch.device("cuda", 0)):
            raise FAILURES["full"][0]

    monkeypatch.setattr(loading, "_load", load_too_much)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 70 << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 80 << 30))
    with pytest.raises(LoadError, match=r"does not fit: 70.0 GiB .* has 80.0 GiB, .* larger GPU. CUDA out of memory."):
        loading.load(settings_of(device="cpu"), lambda fraction, phase: None, lambda: None)


def main(how: str) -> int:
    """The engine process; its arguments are the two endpoints."""
    failure = FAILURES[how][0]
    model = Breaking(failure)
    worker = ModelWorker(model, [], TorchKernels(), seats=4, longest=64, budget=64)
    worker._device = torch.device("cuda", 0)

    def synchronize(device: torch.device) -> None:
        """A GPU that has failed answers everything with that."""
        if not isinstance(failure, torch.OutOfMemoryError):
            raise failure

    torch.cuda.synchronize = synchronize
    loaded = Loaded(worker, 1, "stand-in", vocab_size=20, max_model_len=64, blocks=64, block_size=16)
    process.load = lambda *args: loaded
    status = process.main()
    print(f"{model.passes} passes", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv.pop(1)))
