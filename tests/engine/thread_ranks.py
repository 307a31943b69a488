"""Ranks as threads of one process, each with its part of a model; the first one is whoever makes the others."""

import queue
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import NamedTuple

import torch
from torch import Tensor

from headwater_engine.core.step import Pending, Step, TokenMasks
from headwater_engine.distributed.place import Meeting
from headwater_engine.distributed.ranks import Ranks
from headwater_engine.worker.rank import LeadingWorker, StepTeller
from headwater_engine.worker.worker import ModelWorker
from tests.engine.in_ranks import EndingHearer, follow_to_the_end

PATIENCE = 600  # seconds: a guard


class Table:
    """Where threads that are ranks lay down what they say, and how many bytes of it each has sent."""

    tables: list["Table"] = []  # noqa: RUF012

    def __init__(self, size: int) -> None:
        self.number = len(self.tables)
        self.tables.append(self)
        self.said: list[Tensor] = [torch.empty(0)] * size
        self.bytes = [0] * size
        self.barrier = Barrier(size)


@torch.library.custom_op("headwater_tests::lay_down", mutates_args=())
def _lay_down(x: Tensor, table: int, rank: int) -> Tensor:
    """All ranks' `x` [size, ...]. An operation like those of torch, so that it can be recorded (recording.py)."""
    said, barrier = Table.tables[table].said, Table.tables[table].barrier
    said[rank] = x.clone()
    barrier.wait(PATIENCE)
    everything = torch.stack(said)
    barrier.wait(PATIENCE)
    return everything


class ThreadRanks:
    def __init__(self, rank: int, table: Table) -> None:
        self.rank, self.size, self._table = rank, len(table.said), table

    def _lay_down(self, x: Tensor) -> Tensor:
        everything: Tensor = _lay_down(x, self._table.number, self.rank)
        return everything

    def sum(self, x: Tensor) -> Tensor:
        return x.copy_(self._lay_down(x).sum(0))

    def gather(self, x: Tensor) -> Tensor:
        self._table.bytes[self.rank] += x.nbytes
        parts = self._lay_down(x)
        return x.new_empty(0, x.shape[1] * self.size) if self.rank else parts.transpose(0, 1).flatten(1)

    def exchange(self, x: Tensor) -> Tensor:
        self._table.bytes[self.rank] += x.nbytes
        return self._lay_down(x)

    def tell(self, x: Tensor) -> Tensor:
        self._table.bytes[self.rank] += x.nbytes if self.rank == 0 else 0
        return self._lay_down(x)[0]

    def least(self, number: int) -> int:
        return int(self._lay_down(torch.tensor([number])).min())


class Row(NamedTuple):
    """All that a rank knows of a seat as a step's forward pass begins."""

    seat: int
    tokens: list[int]
    blocks: list[int]
    blocks_on_device: list[int]
    last: int
    outputs: int


class Witness:
    """A worker that writes down its rows as it takes each step in."""

    def __init__(self, worker: ModelWorker) -> None:
        self._worker = worker
        self.seen: queue.SimpleQueue[tuple[int, list[Row]]] = queue.SimpleQueue()

    def launch(self, step: Step) -> None:
        self._worker.launch(step)
        seats, rows = self._worker._seats, self._worker._rows
        table = []
        for seat in (seat for seat in range(seats.count) if seats._sitters[seat] is not None):
            count = seats._blocks[seat]
            table.append(
                Row(
                    seat,
                    seats.tokens[seat, : seats.lengths[seat]].tolist(),
                    seats._tables[seat, :count].tolist(),
                    seats.on_device.blocks[seat, :count].tolist(),
                    int(seats.on_device.last[seat]),
                    rows.outputs(seat),
                )
            )
        self.seen.put((step.number, table))

    def sample(self, masks: TokenMasks | None = None) -> Pending:
        return self._worker.sample(masks)


class ThreadGroup:
    """Ranks that work as those of `headwater serve` do: the first tells steps, the others follow."""

    def __init__(self, folder: Path, size: int, make: Callable[[Ranks], ModelWorker]) -> None:
        """`make` makes the worker of a rank, together with all others."""
        self._meeting = Meeting("", f"ipc://{folder}/steps", "secret")
        self._teller = StepTeller(self._meeting)
        self._table = Table(size)
        self._make = make
        self._witnesses: dict[int, Witness] = {}
        self.failures: list[BaseException] = []
        """Of ranks that follow."""
        self._threads = [Thread(target=self._follow, args=(rank,), daemon=True) for rank in range(1, size)]
        for thread in self._threads:
            thread.start()
        first = self._sit(0)
        self._teller.wait_for(size - 1)
        self.worker = LeadingWorker(first, self._teller)

    def __enter__(self) -> "ThreadGroup":
        return self

    def __exit__(self, *error: object) -> None:
        if self.failures or error[0] is not None:
            self._table.barrier.abort()
        self._teller.tell(Step(0, [], [], [], [], []))
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self._teller._socket.close()
        if error[0] is None:
            assert not self.failures

    def compare(self) -> None:
        """Checks that all ranks had the same rows at each step since the last call."""
        first, *others = (self._witnesses[rank].seen for rank in range(len(self._witnesses)))
        steps = []
        while not first.empty():
            steps.append((first.get(), [other.get(timeout=PATIENCE) for other in others]))
        for expected, seen in steps:
            assert all(each == expected for each in seen), "a rank has other rows than the first one"

    def _sit(self, rank: int) -> Witness:
        self._witnesses[rank] = witness = Witness(self._make(ThreadRanks(rank, self._table)))
        return witness

    def _follow(self, rank: int) -> None:
        hearer = EndingHearer(self._meeting)
        try:
            follow_to_the_end(self._sit(rank), hearer)
        except BaseException as error:
            self.failures.append(error)
            self._table.barrier.abort()  # nobody waits for it
        finally:
            hearer._socket.close()
