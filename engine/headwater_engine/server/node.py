"""A machine that has no first rank: starts its ranks once the first machine says so, and answers probes.

Ends with the engine as a whole: with 0 where that is meant to be, with 1 where something went wrong, here or elsewhere.
"""

import asyncio
import contextlib
import signal
import sys
from typing import Final

import structlog

from headwater import __version__
from headwater.http.bodies import BodyBudget
from headwater.http.connection import ClientConnection
from headwater.http.descriptors import Descriptors
from headwater.http.replies import answer_error, answer_json
from headwater.http.request import Request
from headwater.http.server import Server
from headwater.listening import cannot_listen
from headwater.openai.errors import APIError, NotFoundError
from headwater_engine.config import EngineSettings
from headwater_engine.distributed.group import Group, start_ranks
from headwater_engine.distributed.rendezvous import join
from headwater_engine.errors import RendezvousError, StartError

log = structlog.get_logger(__name__)

FROZEN_AFTER: Final = 30.0
"""Seconds within one layer of a step after which /health fails."""
_LARGEST: Final = 16 * 1024
"""Bytes of a request's head, and of its body, which nobody needs."""


class NodeServer:
    """Probes on one side, the ranks of this machine on the other."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._group = Group(alone=False)
        self._phase = "starting"
        self._started = False
        self._told_to_end, self._told_again = asyncio.Event(), asyncio.Event()

    async def run(self) -> int:
        """Until the engine ends, or a signal. Returns the exit status."""
        settings, loop = self._settings, asyncio.get_running_loop()
        server = Server(
            self._answer, Descriptors.of_process(), max_head=_LARGEST, max_body=_LARGEST, bodies=BodyBudget(_LARGEST)
        )
        try:
            await server.listen(settings.host, settings.port)
        except OSError as error:
            return self._fail(cannot_listen(settings.host, settings.port, error))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take_signal)
        engine, told = asyncio.create_task(self._engine()), asyncio.create_task(self._until_told())
        try:
            await asyncio.wait((engine, told), return_when=asyncio.FIRST_COMPLETED)
            if engine.done():
                return engine.result()
            self._group.leave(f"Node {settings.node_rank} was told to end.")
            return 0
        finally:
            engine.cancel()
            told.cancel()
            await asyncio.gather(engine, told, return_exceptions=True)
            await self._group.end("")
            await server.close()

    async def _engine(self) -> int:
        try:
            meeting, line = await join(self._settings, self._say)
            self._group.join("Node 0", line, first=True)
            self._say("loading")
            await start_ranks(self._group, self._settings, meeting)
        except (RendezvousError, StartError) as error:
            return self._fail(str(error))
        self._started = True
        reason = await self._group.watch()
        return self._fail(reason) if reason else 0

    def _say(self, phase: str) -> None:
        if phase != self._phase:
            log.info("loading", phase=phase)
        self._phase = phase

    def _fail(self, reason: str) -> int:
        print(f"headwater serve: {reason}", file=sys.stderr)
        return 1

    def _take_signal(self) -> None:
        """After the first one the engine may go on for a while: it has answers to complete. A second one is final."""
        (self._told_again if self._told_to_end.is_set() else self._told_to_end).set()

    async def _until_told(self) -> None:
        await self._told_to_end.wait()
        if self._started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.shutdown_timeout):
                    await self._told_again.wait()

    async def _answer(self, request: Request, client: ClientConnection) -> None:
        try:
            if request.error is not None:
                raise request.error
            match request.path:
                case "/health":
                    self._answer_health(client)
                case "/ready":
                    self._answer_ready(client)
                case "/version":
                    answer_json(client, {"version": __version__})
                case _:
                    raise NotFoundError(f"There is nothing at {request.path}: node 0 serves requests.")
        except APIError as error:
            answer_error(client, error)

    def _answer_health(self, client: ClientConnection) -> None:
        """Whether the ranks here make progress."""
        if self._group.still > FROZEN_AFTER:
            reason = f"a rank has been within one layer for {self._group.still:.0f} seconds"
            answer_json(client, {"status": "frozen", "reason": reason}, 503)
        else:
            answer_json(client, {"status": "ok"})

    def _answer_ready(self, client: ClientConnection) -> None:
        """Whether all ranks here are in the group, and have their part of the model."""
        if self._told_to_end.is_set():
            answer_json(client, {"status": "draining"}, 503)
        elif self._started and self._group.loaded:
            answer_json(client, {"status": "ready", "ranks": len(self._group.processes)})
        else:
            answer_json(client, {"status": "loading", "phase": self._phase, "fraction": 0.0}, 503)
