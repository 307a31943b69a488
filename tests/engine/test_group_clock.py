"""Five seconds after whatever befalls a rank or a machine the whole group is gone, each with the sentence that says it.

The clock is a number here: a group of one or two machines lives through each fault in each phase, a moment later each
time, so that all ways in which looks, beats and the fault may fall together are tried. Real processes, and what they
took: benchmarks/group_end.py.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pytest

from benchmarks.virtual_clock import run
from headwater_engine.config import EngineSettings
from headwater_engine.distributed import group as module
from headwater_engine.distributed import rendezvous
from headwater_engine.distributed.group import Activity, Group, Peer
from headwater_engine.distributed.line import INTERVAL, LONGEST, Beat, End, Failed, Line, Loaded
from headwater_engine.distributed.rendezvous import Leader

PROMISED: Final = 5.0
"""Seconds."""
MOMENTS: Final = [0.01 + 0.033 * n for n in range(16)]
"""Seconds after a second at which a fault comes: over the time from a look to the next, and from a beat to the next."""
LATENCY: Final = 0.05
"""Seconds between two machines."""


@dataclass
class Writer:
    """As much of a StreamWriter as a Line takes. What it writes is heard `delay` later, unless the cable is cut."""

    other: asyncio.StreamReader
    delay: float = 0.0
    cut: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self._under_way: deque[Callable[[], None]] = deque()

    def write(self, data: bytes) -> None:
        self._send(partial(self.other.feed_data, data))

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._send(self.other.feed_eof)

    def is_closing(self) -> bool:
        return self.closed

    async def drain(self) -> None:
        """Nothing waits."""

    def _send(self, what: Callable[[], None]) -> None:
        """In order, which timers of one moment are not."""
        if not self.cut:
            self._under_way.append(what)
            asyncio.get_running_loop().call_later(self.delay, lambda: self._under_way.popleft()())


class Cable:
    """Two lines that are the ends of one."""

    def __init__(self, delay: float = 0.0) -> None:
        readers = asyncio.StreamReader(limit=LONGEST), asyncio.StreamReader(limit=LONGEST)
        self.writers = Writer(readers[1], delay), Writer(readers[0], delay)
        here, there = (Line(*end) for end in zip(readers, self.writers, strict=True))  # type: ignore[arg-type]
        self.here: Line = here
        self.there: Line = there

    def cut(self) -> None:
        """Nothing says goodbye."""
        for writer in self.writers:
            writer.cut = True

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


@dataclass(eq=False)
class Rank:
    """A process of which only its lifeline is there (`distributed/lifeline.py`)."""

    pid: int
    phase: str
    """starts: it says nothing yet; loads; serves."""
    cable: Cable = field(default_factory=Cable)
    returncode: int | None = None
    heard: str | None = None
    """What it was told to end of, and wrote."""
    stands_still: bool = False
    sums: int = 1
    still: bool = False
    """It beats, and does nothing else."""

    def __post_init__(self) -> None:
        self._gone = asyncio.Event()
        self._tasks = [asyncio.create_task(self._hear())]
        if self.phase != "starts":
            self._tasks.append(asyncio.create_task(self._beat()))

    async def _beat(self) -> None:
        await asyncio.sleep(0.13 * self.pid)
        if self.phase == "serves":
            self.cable.there.say(Loaded())
        while True:
            self.cable.there.say(Beat(1, working=self.phase == "serves", sums=self.sums, still=self.still))
            await asyncio.sleep(INTERVAL)

    async def _hear(self) -> None:
        message = await self.cable.there.hear()
        self.heard = message.message if isinstance(message, End) else "the process that started it is gone"
        self._leave(1)

    async def fail(self) -> None:
        self.cable.there.say(Failed(f"Rank {self.pid}: there is no memory left."))
        await asyncio.sleep(2)
        self._leave(1)

    def stop(self) -> None:
        self.stands_still = True
        for task in self._tasks:
            task.cancel()

    def kill(self) -> None:
        self._leave(-9)

    async def wait(self) -> int:
        await self._gone.wait()
        assert self.returncode is not None
        return self.returncode

    def _leave(self, status: int) -> None:
        if self.returncode is None:
            self.returncode = status
            self.stop()
            self.cable.writers[1].close()
            self._gone.set()


@dataclass(eq=False)
class Machine:
    """The process that watches its ranks, and they."""

    group: Group
    ranks: list[Rank]
    watching: asyncio.Task[str]

    def die(self) -> None:
        """As with its HTTP process all else there does."""
        self.watching.cancel()
        for rank in self.ranks:
            rank.kill()


@dataclass
class World:
    machines: list[Machine]
    between: Cable

    @property
    def ranks(self) -> list[Rank]:
        return [rank for machine in self.machines for rank in machine.ranks]


def world(machines: int, phase: str) -> World:
    """Two ranks on each."""
    between, made = Cable(LATENCY), []
    for number in range(machines):
        group = Group(alone=False)
        ranks = [Rank(2 * number + each, phase) for each in range(2)]
        for rank in ranks:
            group._peers.append(Peer(f"Rank {rank.pid}", rank.cable.here, rank))  # type: ignore[arg-type]
        if machines > 1 and number == 0:
            group.join("Node 1, with ranks 2 to 3,", between.here)
        if number == 1:
            group.join("Node 0", between.there, first=True)
        made.append(Machine(group, ranks, asyncio.create_task(watched(group, between, number))))
    return World(made, between)


async def watched(group: Group, between: Cable, number: int) -> str:
    """And then the process ends, and its sockets with it."""
    try:
        return await group.watch()
    finally:
        between.writers[number].close()


@contextmanager
def activity_of(ranks: list[Rank]) -> Iterator[None]:
    """Whoever does not stand still computes, and takes CPU time."""
    ticks = {rank.pid: 0 for rank in ranks}

    def activity(pid: int) -> Activity:
        ticks[pid] += not ranks[pid].stands_still
        return Activity(ticks[pid], False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_activity", activity)
        patch.setattr(module, "_wants_to_run", lambda pid: not ranks[pid].still)
        yield


async def befall(machines: int, phase: str, fault: Callable[[World], object], moment: float) -> tuple[float, World]:
    """How long after it all are gone that can be."""
    loop = asyncio.get_running_loop()
    those = world(machines, phase)
    with activity_of(those.ranks):
        await asyncio.sleep(1 + moment)
        begun = loop.time()
        fault(those)
        left = [machine.watching for machine in those.machines if not machine.watching.cancelled()]
        async with asyncio.timeout(600):
            await asyncio.gather(*left, *(rank.wait() for rank in those.ranks), return_exceptions=True)
    return loop.time() - begun, those


def worst_of(machines: int, phase: str, fault: Callable[[World], object], *sentences: str) -> float:
    """Of all moments. On each machine the sentence of that number is the end, and the last words of its ranks."""
    longest = 0.0
    for moment in MOMENTS:
        took, those = run(befall(machines, phase, fault, moment))
        for machine, sentence in zip(those.machines, sentences, strict=True):
            if not machine.watching.cancelled():
                assert machine.watching.result() == sentence
                assert {rank.heard for rank in machine.ranks} <= {sentence, None}, "None: it could not hear"
        longest = max(longest, took)
    return longest


def kill(rank: int) -> Callable[[World], object]:
    return lambda those: those.ranks[rank].kill()


def stop(rank: int) -> Callable[[World], object]:
    return lambda those: those.ranks[rank].stop()


def fail(rank: int) -> Callable[[World], object]:
    return lambda those: asyncio.ensure_future(those.ranks[rank].fail())


FAULTS: Final = {
    "killed": (kill, "Rank {} died with exit status -9."),
    "stopped": (stop, "Rank {} gives no sign of life."),
    "failed": (fail, "Rank {}: there is no memory left."),
}


@pytest.mark.parametrize("phase", ["starts", "loads", "serves"])
@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize(("machines", "rank"), [(1, 0), (1, 1), (2, 0), (2, 3)])
def test_a_rank_takes_all_with_it_in_time(what: str, machines: int, rank: int, phase: str) -> None:
    if phase == "starts" and what == "failed":
        phase = "loads"  # who says nothing yet cannot say that
    make, sentence = FAULTS[what]
    assert worst_of(machines, phase, make(rank), *[sentence.format(rank)] * machines) <= PROMISED


@pytest.mark.parametrize(("machines", "rank"), [(1, 0), (1, 1), (2, 0), (2, 3)])
def test_a_rank_that_beats_and_does_nothing_takes_all_with_it_in_time(machines: int, rank: int) -> None:
    """From when the others wait for it."""

    def fault(those: World) -> None:
        those.ranks[rank].still = True
        for other in those.ranks:
            other.sums += other.pid != rank

    assert worst_of(machines, "serves", fault, *[f"Rank {rank} stands still while others wait for it."] * machines) <= (
        PROMISED
    )


@pytest.mark.parametrize("phase", ["starts", "loads", "serves"])
@pytest.mark.parametrize("machine", [0, 1])
@pytest.mark.parametrize("what", ["cut off", "closed", "dead"])
def test_a_machine_that_is_lost_takes_all_with_it_in_time(what: str, machine: int, phase: str) -> None:
    faults: dict[str, Callable[[World], object]] = {
        "cut off": lambda those: those.between.cut(),
        "closed": lambda those: those.between.close(),
        "dead": lambda those: those.machines[machine].die(),
    }
    ends = "gives no sign of life." if what == "cut off" else "is gone: the connection to it has ended."
    sentences = [f"Node 1, with ranks 2 to 3, {ends}", f"Node 0 {ends}"]
    assert worst_of(2, phase, faults[what], *sentences) <= PROMISED


def test_a_rank_that_stops_as_its_machine_is_cut_off_takes_all_with_it_in_time() -> None:
    """Whoever notices first: the machine by its rank, the other one by the silence between them."""

    def fault(those: World) -> None:
        those.between.cut()
        those.ranks[3].stop()

    # Its own machine still takes the other for alive as it sees the rank, and waits in vain for the verdict.
    sentences = "Node 1, with ranks 2 to 3, gives no sign of life.", "Rank 3 gives no sign of life."
    assert worst_of(2, "serves", fault, *sentences) <= PROMISED


# While machines wait for one another


def of_node(node: int) -> EngineSettings:
    shared: dict[str, Any] = {"model": "m", "tensor_parallel_size": 6, "nodes": 3, "leader": "198.18.0.1:29500"}
    return EngineSettings(**shared, node_rank=node)


@dataclass
class Port:
    """Node 0's, without a network."""

    leader: Leader
    patch: pytest.MonkeyPatch
    cables: list[Cable] = field(default_factory=list)
    unplugged: bool = False

    def __post_init__(self) -> None:
        self.patch.setattr(rendezvous.asyncio, "open_connection", self._connect)  # type: ignore[attr-defined]
        self.patch.setattr(rendezvous.asyncio, "start_server", self._listen)  # type: ignore[attr-defined]

    async def _listen(self, *args: Any, **options: Any) -> "Port":
        return self

    def close(self) -> None:
        """Nobody comes any more."""

    async def _connect(self, host: str, port: int, *, limit: int) -> tuple[Any, Any]:
        if self.unplugged:
            await asyncio.Event().wait()
        cable = Cable(LATENCY)
        self.cables.append(cable)
        self._greeting = asyncio.create_task(self.leader._greet(cable.here._reader, cable.here._writer))
        return cable.there._reader, cable.there._writer


@pytest.mark.parametrize("how", ["cut off", "closed"])
def test_a_machine_that_is_lost_before_all_are_there_is_missed_in_time(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has begun that could end: both sides say so, go on waiting, and find one another again."""

    async def wait(moment: float) -> None:
        loop = asyncio.get_running_loop()
        port = Port(Leader(of_node(0)), monkeypatch)
        said: dict[int, list[tuple[float, str]]] = {0: [], 1: [], 2: []}
        tell = {node: lambda text, node=node: said[node].append((loop.time(), text)) for node in said}
        gathering = asyncio.create_task(port.leader.gather(tell[0]))
        await asyncio.sleep(0)
        first = asyncio.create_task(rendezvous.join(of_node(1), tell[1]))
        await asyncio.sleep(1 + moment)
        assert said[0][-1][1] == "waiting for node 2"
        lost = loop.time()
        port.unplugged = True
        port.cables[0].cut() if how == "cut off" else port.cables[0].close()
        await asyncio.sleep(PROMISED + rendezvous._SILENCE + 2 * rendezvous._AGAIN)
        assert said[0][-1][1] == "waiting for node 1, 2"
        assert said[0][-1][0] - lost <= PROMISED
        assert said[1][1][1].startswith("waiting for node 0 at 198.18.0.1:29500 (")
        assert said[1][1][0] - lost <= PROMISED + rendezvous._AGAIN
        port.unplugged = False
        second = asyncio.create_task(rendezvous.join(of_node(2), tell[2]))
        meeting, lines = await gathering
        assert sorted(lines) == [1, 2]
        assert {joined[0] for joined in await asyncio.gather(first, second)} == {meeting}

    for moment in MOMENTS[::4]:
        run(wait(moment))


def test_a_machine_that_is_cut_off_as_all_are_there_ends_the_others_in_time() -> None:
    """Between the start that is told it and its first beat."""

    async def begin(moment: float) -> None:
        loop, between = asyncio.get_running_loop(), Cable(LATENCY)
        group = Group(alone=False)
        rank = Rank(0, "starts")
        group._peers.append(Peer("Rank 0", rank.cable.here, rank))  # type: ignore[arg-type]
        group.join("Node 1, with rank 1,", between.here)
        between.cut()
        with activity_of([rank]):
            assert await group.watch() == "Node 1, with rank 1, gives no sign of life."
        assert rank.returncode is not None
        assert loop.time() <= PROMISED

    run(begin(0.0))
