"""Runs a function in several processes that are the ranks of a group, over gloo; and an engine among them."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist

from headwater_engine.core.step import Step, Worker
from headwater_engine.distributed.lifeline import Lifeline
from headwater_engine.distributed.place import Meeting
from headwater_engine.worker.rank import LeadingWorker, StepHearer, StepTeller, follow

LONGEST_WAIT = 900  # seconds: a guard, where a rank is missing all others wait


def in_ranks(count: int, folder: Path, run: Callable[..., Any], *args: Any) -> list[Any]:
    """What `run(*args)` returns in each of `count` processes that are a group."""
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_join, rank, count, str(folder / "store"), run, *args) for rank in range(count)]
        return [future.result(LONGEST_WAIT) for future in futures]


def _join(rank: int, count: int, store: str, run: Callable[..., Any], *args: Any) -> Any:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=LONGEST_WAIT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timeout)
    try:
        return run(*args)
    finally:
        dist.destroy_process_group()


class _OverError(Exception):
    """The first rank has no more steps."""


class EndingHearer(StepHearer):
    """To whom a step without spans is the end."""

    def hear(self) -> Step:
        step = super().hear()
        if not step.spans:
            raise _OverError
        return step


def follow_to_the_end(worker: Worker, hearer: EndingHearer) -> None:
    """What a rank above the first does, until the first one tells a step without spans."""
    with suppress(_OverError):
        follow(worker, hearer, cast("Lifeline", SimpleNamespace(working=False)))


class Session:
    """Engines one after the other, whose first rank is in one process and whose others are in others."""

    def __init__(self, folder: Path) -> None:
        meeting = Meeting("", f"ipc://{folder}/steps", "secret")
        self._first = dist.get_rank() == 0
        self._steps = StepTeller(meeting) if self._first else None
        self._hearer = None if self._first else EndingHearer(meeting)
        if self._steps is not None:
            self._steps.wait_for(dist.get_world_size() - 1)

    def run(self, worker: Worker, ask: Callable[[Worker], Any]) -> Any:
        """What `ask` returns on the first rank, where the others do as it says."""
        if self._steps is not None:
            answer = ask(LeadingWorker(worker, self._steps))
            self._steps.tell(Step(0, [], [], [], [], []))
            return answer
        assert self._hearer is not None
        follow_to_the_end(worker, self._hearer)
        return None
