"""Trial steps: they are the largest that there can be, and their memory is counted."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.worker import trial
from headwater_engine.worker.trial import measure, run_trial, trial_steps
from headwater_engine.worker.worker import ModelWorker
from tests.engine.test_overlap import Counting

GIB, CPU = 1 << 30, torch.device("cpu")


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 300))
def test_there_is_the_largest_step_of_each_kind_and_none_that_is_larger(seats: int, more: int, longest: int) -> None:
    budget = seats + more
    steps = list(trial_steps(seats=seats, budget=budget, longest=longest))
    sizes = [sum(span.count for span in step.spans) for step in steps]
    assert max(sizes) == max(min(budget, longest), min(budget // seats, longest) * seats)
    assert all(size <= budget for size in sizes)
    assert any(len(step.spans) == seats and all(span.count == 1 for span in step.spans) for step in steps)
    assert {span.start + span.count for step in steps for span in step.spans} >= {longest, min(budget, longest)}
    for step in steps:
        assert all(0 <= span.start < span.start + span.count <= longest for span in step.spans)
        assert {block for _, blocks in step.blocks for block in blocks} == {0}
    asked = [seat.sampling for step in steps if len(step.spans) == seats for seat in step.seated]
    assert any(each.top_k and each.top_p < 1 and each.presence_penalty and each.logprobs for each in asked)


def test_a_worker_takes_them() -> None:
    worker = ModelWorker(Counting(99), [], TorchKernels(), seats=3, longest=50, budget=20)
    run_trial(worker, seats=3, budget=20, longest=50)


@dataclass
class Memory:
    """Of a GPU, as torch counts it."""

    free: int
    reserved: int
    most: int = 0
    gone: list[int] = field(default_factory=list)

    def take(self, size: int, *, keep: bool) -> None:
        self.reserved += size
        self.most = max(self.most, self.reserved)
        if keep:
            self.free -= size
        else:
            self.reserved -= size


def test_all_that_a_worker_takes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 15 GiB, 2 GiB that others have, steps that take 1 and 3 GiB, and graphs: 800 MiB, and 10 each more."""
    memory = Memory(free=80 * GIB - 15 * GIB - 2 * GIB, reserved=15 * GIB, most=70 * GIB)
    sizes = iter((1 * GIB, 3 * GIB, 2 * GIB))
    for name, value in {
        "memory_allocated": lambda device: 15 * GIB,
        "memory_reserved": lambda device: memory.reserved,
        "max_memory_reserved": lambda device: memory.most,
        "reset_peak_memory_stats": lambda device: setattr(memory, "most", memory.reserved),
        "mem_get_info": lambda device: (memory.free, 80 * GIB),
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    class Worker:
        def record(self, record: object, sizes: list[int], *, spare_block: int, tell: object) -> None:
            for number, _ in enumerate(sizes):
                tell(number / len(sizes))  # type: ignore[operator]
                memory.take((800 if number == 0 else 10) << 20, keep=True)

    def steps(worker: Worker, *, seats: int, budget: int, longest: int) -> None:
        for size in sizes:
            memory.take(size, keep=False)

    monkeypatch.setattr(trial, "run_trial", steps)
    found = measure(
        Worker,  # type: ignore[arg-type]
        CPU,
        seats=32,
        budget=64,
        longest=100,
        utilization=0.9,
        record=lambda run: run,
    )
    assert (found.total, found.weights) == (80 * GIB, 15 * GIB)
    assert found.others == 2 * GIB
    assert found.step == 3 * GIB
    assert found.graphs == (800 + 10 * 5) << 20, "of the sizes 32, 16, 8, 4, 2 and 1"
    eager = measure(Worker, CPU, seats=32, budget=64, longest=100, utilization=0.9, record=None)  # type: ignore[arg-type]
    assert eager.graphs == 0
