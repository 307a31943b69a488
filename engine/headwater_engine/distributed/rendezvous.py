"""How the machines of one engine find one another: all others come to the first one, which waits for them.

They may start in any order, and be started again. Until all are there each goes on trying; from then on the line
between two machines is watched (`group.py`), and its end is the end of the group. The first machine listens only while
it waits.

Whoever can reach the port can ask to join. What it sends is bounded, and whatever it is costs no more than its own
connection; but nothing proves that a machine is one of ours, so the port must not be open to others (docs/engine.md).
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from typing import Any, Final

import structlog

from headwater import __version__
from headwater_engine.config import EngineSettings
from headwater_engine.distributed.line import LONGEST, Beat, Hello, Line, Message, Refused, Start
from headwater_engine.distributed.place import Meeting, listening_host
from headwater_engine.errors import RendezvousError

log = structlog.get_logger(__name__)

PATIENCE: Final = 600.0
"""Seconds until all must be there: images are pulled and machines are found meanwhile."""
_AGAIN: Final = 0.5
"""Seconds between two attempts to join."""
_SILENCE: Final = 4.0
"""Seconds without a word after which somebody who waits is not there any more."""
_STRANGERS: Final = 64
"""Connections that have not said yet who they are."""
_KERNELS: Final = "HEADWATER_KERNELS"
"""The variable that says which kernels a machine takes (`kernels/__init__.py`, which is slow to import)."""
_OWN: Final = frozenset(
    {"host", "port", "node_rank", "leader", "served_model_name", "max_waiting", "scheduling_policy", "threads"}
    | {"itl_objective_ms", "kv_events", "prefix_cache", "chat_template", "special_tokens_in_messages"}
    | {"generation_config", "max_body_mib", "shutdown_timeout", "log_level"}
)
"""Settings that may differ: they are about one machine, or only the first one has a use for them."""


def address_of(settings: EngineSettings, offset: int = 0) -> tuple[str, int]:
    """Host and port of the first machine. Behind its port are those of the store (1) and of steps (2)."""
    assert settings.leader is not None
    host, _, port = settings.leader.rpartition(":")
    return host.strip("[]"), int(port) + offset


def _shared(settings: EngineSettings) -> dict[str, Any]:
    """By the names that people know them by."""
    values = settings.model_dump(mode="json", exclude=set(_OWN))
    shared = {f"--{name.replace('_', '-')}": value for name, value in values.items()}
    return shared | {_KERNELS: os.environ.get(_KERNELS, "auto")}


class Leader:
    """The first machine's side."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._there: dict[int, Line] = {}
        self._strangers = 0
        self._news = asyncio.Event()
        self._greetings: set[asyncio.Task[None]] = set()

    async def gather(self, tell: Callable[[str], None]) -> tuple[Meeting, dict[int, Line]]:
        """The lines to all other machines, by number, once all are there. Raises RendezvousError.

        `tell` is told whom it waits for.
        """
        host, port = address_of(self._settings)
        wanted = range(1, self._settings.nodes)
        try:
            server = await asyncio.start_server(self._greet, listening_host(host), port, limit=LONGEST)
        except OSError as error:
            raise RendezvousError(f"cannot wait for the other nodes on port {port}: {error.strerror}.") from error
        try:
            async with asyncio.timeout(PATIENCE):
                while missing := [node for node in wanted if node not in self._there]:
                    tell(f"waiting for node {', '.join(map(str, missing))}")
                    await self._news.wait()
                    self._news.clear()
        except TimeoutError:
            raise RendezvousError(
                f"Node {', '.join(map(str, missing))} of {self._settings.nodes} did not come within "
                f"{PATIENCE:.0f} seconds to {host}:{port}."
            ) from None
        finally:
            server.close()
            for greeting in list(self._greetings):
                greeting.cancel()
            await asyncio.gather(*self._greetings, return_exceptions=True)
        return self._start(), self._there

    def _start(self) -> Meeting:
        host, store = address_of(self._settings, 1)
        host = f"[{host}]" if ":" in host else host
        meeting = Meeting(f"tcp://{host}:{store}", f"tcp://{host}:{store + 1}", secrets.token_hex())
        for line in self._there.values():
            line.say(Start(meeting.store, meeting.steps, meeting.secret))
        return meeting

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Runs for each connection, until it is over or all are there."""
        task = asyncio.current_task()
        assert task is not None
        line = Line(reader, writer)
        self._greetings.add(task)
        try:
            node = await self._admit(line)
            if node is not None:
                await self._keep(node, line)
        except asyncio.CancelledError:
            pass  # all are there; asyncio would close the connection of a task that was cancelled
        finally:
            self._greetings.discard(task)
            if line not in self._there.values():
                await line.close()

    async def _admit(self, line: Line) -> int | None:
        """Which machine it is, once it may join."""
        if self._strangers >= _STRANGERS:
            return None
        self._strangers += 1
        try:
            hello = await _hear(line)
        except TimeoutError:
            return None
        finally:
            self._strangers -= 1
        if not isinstance(hello, Hello):
            return None
        refusal = self._refusal(hello)
        if refusal is None:
            return hello.node
        if refusal.for_good:
            log.warning("a node is refused", node=hello.node, reason=refusal.message)
        line.say(refusal)
        return None

    def _refusal(self, hello: Hello) -> Refused | None:
        node, mine = hello.node, _shared(self._settings)
        if hello.version != __version__:
            return Refused(f"it runs Headwater {hello.version[:40]!r}, and node 0 {__version__!r}", True)
        if hello.settings.keys() != mine.keys():
            return Refused("it has other settings than node 0", True)
        if (name := next((name for name in mine if mine[name] != hello.settings[name]), None)) is not None:
            theirs = repr(hello.settings[name])[:100]
            return Refused(f"{name} is {theirs} there, and {mine[name]!r} on node 0", True)
        if not 0 < node < self._settings.nodes:
            return Refused(f"there is no node {node} among {self._settings.nodes}", True)
        if node in self._there:
            return Refused(f"node {node} is there already", False)
        return None

    async def _keep(self, node: int, line: Line) -> None:
        """For as long as it waits with us."""
        log.info("a node is there", node=node)
        self._there[node] = line
        self._news.set()
        try:
            while await _hear(line) is not None:
                line.say(Beat())
        except TimeoutError:
            pass
        log.warning("a node is gone again", node=node)
        del self._there[node]
        self._news.set()


async def _hear(line: Line) -> Message | None:
    """Raises TimeoutError. (`wait_for` may lose that its task is cancelled, in Python 3.11.)"""
    async with asyncio.timeout(_SILENCE):
        return await line.hear()


async def join(settings: EngineSettings, tell: Callable[[str], None]) -> tuple[Meeting, Line]:
    """Go to the first machine, from another one, and wait there until all have come. Raises RendezvousError.

    `tell` is told what it waits for.
    """
    host, port = address_of(settings)
    reason = ""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                tell(f"waiting for node 0 at {host}:{port}{reason and f' ({reason})'}")
                try:
                    return await _attempt(settings, host, port)
                except (OSError, TimeoutError) as error:
                    reason = str(error) or "it does not answer"
                await asyncio.sleep(_AGAIN)
    except TimeoutError:
        raise RendezvousError(
            f"Node {settings.node_rank} could not join node 0 at {host}:{port} within {PATIENCE:.0f} seconds: {reason}."
        ) from None


async def _attempt(settings: EngineSettings, host: str, port: int) -> tuple[Meeting, Line]:
    """Raises OSError or TimeoutError where to try again may help, else RendezvousError."""
    async with asyncio.timeout(_SILENCE):
        line = Line(*await asyncio.open_connection(host, port, limit=LONGEST))
    line.say(Hello(__version__, settings.node_rank, _shared(settings)))
    beats = asyncio.create_task(line.beat())
    joined = False
    try:
        while True:
            match await _hear(line):
                case Start(store, steps, secret):
                    joined = True
                    return Meeting(store, steps, secret), line
                case Refused(message, True):
                    raise RendezvousError(f"Node {settings.node_rank} cannot join: {message}.")
                case Refused(message):
                    raise ConnectionRefusedError(message)
                case None:
                    raise ConnectionResetError("it has closed the connection")
    finally:
        beats.cancel()
        if not joined:
            with contextlib.suppress(asyncio.CancelledError):
                await line.close()
