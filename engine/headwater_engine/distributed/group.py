"""Starts, watches and ends the ranks of one machine, and watches over the machines that have the others.

Ranks compute together, so none goes on without the others: whatever becomes of one is the end of all. Whoever started
them sees that first, and it alone is never busy: a rank whose partner is gone waits, deep in a sum, for ever.

Each rank beats twice a second, and so does each other machine. One that is silent is looked at once more: a rank that
loads a library or takes memory may be kept from beating, but it works meanwhile, and one that was stopped or hangs does
not. Silence is counted in our own looks, so that nobody is found dead after a machine has slept.

A rank whose model stands still, say in a deadlock, still beats. It is told from one that takes its time by three things
at once: others are at a later sum than it, it takes no CPU time, and none of its threads would like to have some.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from headwater_engine.config import EngineSettings
from headwater_engine.core import parent
from headwater_engine.distributed import lifeline, place
from headwater_engine.distributed.line import INTERVAL, LONGEST, Beat, Cause, End, Failed, Line, Loaded
from headwater_engine.distributed.place import Meeting, places
from headwater_engine.errors import StartError

_LOOK: Final = 0.5
"""Seconds between two looks at all."""
_SILENT: Final = 7
"""Looks without a sign after which a machine counts as gone."""
_SILENT_AND_IDLE: Final = 4
"""As many for a rank that does nothing meanwhile."""
_SILENT_AT_WORK: Final = 240
"""As many for one that takes CPU time, or waits for some or for a disk: it may load libraries on a busy machine."""
_LATE: Final = 5
"""As many for one that beats and does nothing, while others are further."""
_LAST_WORDS: Final = 0.3
"""Seconds in which others may say what explains it better."""
_VERDICT: Final = 1.0
"""Seconds in which the first machine says what the end is."""
_TO_LEAVE: Final = 0.5
"""Seconds that ranks get to say what they were told and to end."""


_OFTEN_OF: Final = {-signal.SIGBUS: ": a file that it reads has become shorter, or cannot be read any more"}
"""What an exit status says to those who do not know signals by their numbers."""
_RANK: Final = (sys.executable, "-m", "headwater_engine.worker")
"""What runs as each rank but the first."""


class Trouble(NamedTuple):
    cause: Cause
    message: str


@dataclass(slots=True)
class Peer:
    """A rank that runs here, or another machine."""

    name: str
    line: Line
    process: asyncio.subprocess.Process | None = None
    silent: int = 0
    """Looks since it was heard."""
    ticks: int = -1
    """Of CPU time, at the last look."""
    idle: int = 0
    """Looks in which it did nothing."""
    loaded: bool = False
    layers: int = 0
    working: bool = False
    still: int = 0
    """Looks in which it was within a step, and no layer of it was done."""
    sums: int = 0
    idle_as_it_says: bool = False
    late: int = 0
    """Looks in which it did nothing while others were further."""
    failed: bool = False
    """It has said so itself, or cannot say anything any more."""

    @property
    def gone(self) -> bool:
        if self.process is None:
            return self.silent >= _SILENT
        return min(self.silent, self.idle) >= _SILENT_AND_IDLE or self.silent >= _SILENT_AT_WORK

    def look(self, furthest: int) -> None:
        """`furthest`: the sum that any rank of the group has begun."""
        self.silent += 1
        self.still = self.still + 1 if self.working else 0
        if self.process is not None:
            activity = _activity(self.process.pid)
            self.idle = self.idle + 1 if activity.ticks == self.ticks and not activity.waiting else 0
            self.ticks = activity.ticks
            late = self.idle_as_it_says and self.sums < furthest and not _wants_to_run(self.process.pid)
            self.late = self.late + 1 if late else 0

    def heard(self, beat: Beat) -> None:
        if beat.layers != self.layers or not beat.working:
            self.still = 0
        self.layers, self.working, self.sums, self.idle_as_it_says = beat.layers, beat.working, beat.sums, beat.still


class Group:
    """`watch` must run as a task once all are here."""

    def __init__(self, *, alone: bool) -> None:
        """`alone`: there is one rank in all, for which nobody waits. If it stands still, /health says so."""
        self._alone = alone
        self._peers: list[Peer] = []
        self._first_machine: Line | None = None
        self._troubles: list[Trouble] = []
        self._trouble, self._told = asyncio.Event(), asyncio.Event()

    async def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """A rank on this machine, as a child of this process. Raises StartError."""
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                number = theirs.fileno()
                environment = {**environment, lifeline.VARIABLE: str(number)}
                process = await asyncio.create_subprocess_exec(*command, env=environment, pass_fds=(number,))
        except OSError as error:
            raise StartError(f"{name} cannot be started: {error.strerror}.") from error
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST)
        self._peers.append(Peer(name, Line(reader, writer), process))

    def join(self, name: str, line: Line, *, first: bool = False) -> None:
        """Another machine; `first`: the one that has the first rank, and the last word."""
        self._peers.append(Peer(name, line))
        if first:
            self._first_machine = line

    @property
    def processes(self) -> list[asyncio.subprocess.Process]:
        """Of the ranks here, the first one first."""
        return [peer.process for peer in self._peers if peer.process is not None]

    @property
    def loaded(self) -> bool:
        """Whether all ranks here are."""
        return all(peer.loaded for peer in self._peers if peer.process is not None)

    @property
    def still(self) -> float:
        """Seconds for which some rank here has been within one layer of a step."""
        return max((peer.still * _LOOK for peer in self._peers), default=0.0)

    async def watch(self) -> str:
        """Until the first of them is gone. Then ends all the others, and says why, in a sentence.

        Empty where the first machine says that it is meant to be so.
        """
        tasks = [asyncio.create_task(self._listen(peer)) for peer in self._peers]
        tasks += [asyncio.create_task(self._beat(peer.line)) for peer in self._peers if peer.process is None]
        tasks.append(asyncio.create_task(self._look()))
        try:
            await self._trouble.wait()
            await asyncio.sleep(_LAST_WORDS)
            if self._first_machine is not None and not self._first_machine_gone:
                self._first_machine.say(Failed(self._worst.message, self._worst.cause))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_VERDICT):
                        await self._told.wait()
            reason = self._worst.message
            await self.end(reason)
            return reason
        finally:
            for task in tasks:
                task.cancel()

    @property
    def _first_machine_gone(self) -> bool:
        return any(peer.line is self._first_machine and (peer.gone or peer.failed) for peer in self._peers)

    @property
    def _worst(self) -> Trouble:
        """The first of the weightiest."""
        return max(self._troubles, key=lambda trouble: trouble.cause)

    def leave(self, message: str) -> None:
        """Tell the first machine why this one goes."""
        if self._first_machine is not None:
            self._first_machine.say(Failed(message, Cause.GONE))

    async def end(self, message: str) -> None:
        """All that still run, with a reason, or because it is meant to be so."""
        for peer in self._peers:
            if peer.line is not self._first_machine:
                peer.line.say(End(message))
        ends = [asyncio.create_task(process.wait()) for process in self.processes]
        if ends:
            await asyncio.wait(ends, timeout=_TO_LEAVE)
        for process in self.processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*ends, *(peer.line.close() for peer in self._peers))

    async def _listen(self, peer: Peer) -> None:
        while (message := await peer.line.hear()) is not None:
            peer.silent = 0
            match message:
                case Beat():
                    peer.heard(message)
                case Loaded():
                    peer.loaded = True
                case Failed(text, cause):
                    peer.failed = True
                    self._suffer(cause, text)
                case End(text) if peer.line is self._first_machine:
                    self._suffer(Cause.TOLD, text)
                    self._told.set()
        if peer.process is None:
            peer.failed = True
            self._suffer(Cause.GONE, f"{peer.name} is gone: the connection to it has ended.")
            return
        status = await peer.process.wait()
        if not peer.failed:
            self._suffer(Cause.GONE, f"{peer.name} died with exit status {status}{_OFTEN_OF.get(status, '')}.")

    async def _beat(self, line: Line) -> None:
        while True:
            line.say(Beat(sums=self._furthest))
            await asyncio.sleep(INTERVAL)

    @property
    def _furthest(self) -> int:
        return max((peer.sums for peer in self._peers), default=0)

    async def _look(self) -> None:
        while not self._alone:
            await asyncio.sleep(_LOOK)
            for peer in self._peers:
                peer.look(self._furthest)
                if peer.gone:
                    self._suffer(Cause.GONE, f"{peer.name} gives no sign of life.")
                if peer.late >= _LATE:
                    self._suffer(Cause.GONE, f"{peer.name} stands still while others wait for it.")

    def _suffer(self, cause: Cause, message: str) -> None:
        self._troubles.append(Trouble(cause, message))
        self._trouble.set()


async def start_ranks(group: Group, settings: EngineSettings, meeting: Meeting, first: Sequence[str] = ()) -> None:
    """Those of this machine. `first`: the command of the engine process, which is the first of all ranks.

    Raises StartError; those that run then are the group's.
    """
    environment = {
        # What torch itself shares out, as in models that run through transformers, is OpenMP's, whose threads wait
        # awake for milliseconds and take the cores from those that they wait for. With this, for 50 microseconds.
        "GOMP_SPINCOUNT": "1000",
        **os.environ,
        "HEADWATER_ENGINE_SETTINGS": settings.model_dump_json(),
        parent.VARIABLE: str(os.getpid()),
    }
    if settings.tensor_parallel_size == 1:
        await group.start("The engine process", first, environment)
        return
    if settings.nodes == 1:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else by the name of the host, and open to others
    for own in places(settings, meeting):
        environment[place.VARIABLE] = msgspec.json.encode(own).decode()
        await group.start(f"Rank {own.rank}", first if own.rank == 0 else _RANK, environment)


def ranks_in_words(first: int, count: int) -> str:
    return f"rank {first}" if count == 1 else f"ranks {first} to {first + count - 1}"


class Activity(NamedTuple):
    """What the system says of a process."""

    ticks: int
    """Of CPU time that it has taken."""
    waiting: bool
    """For a core, or for a disk."""


def _activity(process: int) -> Activity:
    try:
        fields = _fields(Path(f"/proc/{process}/stat"))
    except OSError:  # another kind of system, or the process is gone
        return Activity(0, False)
    return Activity(int(fields[11]) + int(fields[12]), fields[0] in "RD")


def _wants_to_run(process: int) -> bool:
    """Whether a thread of it runs, would if it got a core, or waits for a disk. True also where nobody can tell."""
    try:
        return any(_fields(thread / "stat")[0] in "RD" for thread in Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return True


def _fields(stat: Path) -> list[str]:
    """Behind the name, which may have anything in it. Raises OSError."""
    return stat.read_text().rpartition(")")[2].split()
