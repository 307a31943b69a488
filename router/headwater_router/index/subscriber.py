"""Follows the KV events of one engine and keeps the index true to them.

Each publisher, of which an engine has one for each of its data-parallel ranks, has a SUB socket. What is lost while it
is not connected, or dropped because we were too slow, shows as a gap in the sequence numbers. Where the engine repeats
its latest messages, it is asked for them: from the first one on when it is connected to, from the first that is missing
after a gap. Else, or where they are gone there, too, the index drops what that publisher had said. A message that
cannot be read counts as lost.

Whatever an engine sends, nobody waits for long: messages have a largest size, and are taken over in pieces between
which others have their turn.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from headwater.events import MOST_BYTES, EventDecodeError, Frames, from_frames
from headwater_router.index.feed import Feed, UnansweredError, catch_up, in_pieces
from headwater_router.index.prefixes import PrefixIndex

_OPTIONS: Final[dict[int, int | bytes]] = {
    zmq.LINGER: 0,
    zmq.RCVHWM: 1000,  # Messages that wait to be taken. What comes beyond is lost, and shows as a gap.
    zmq.MAXMSGSIZE: 4 * MOST_BYTES,  # For what is larger, no memory is taken.
    zmq.RECONNECT_IVL: 50,  # An engine that starts again says first of all that its cache is empty, and says it once.
    zmq.RECONNECT_IVL_MAX: 150,
    zmq.IPV6: 1,  # Of both families; without it, IPv4 alone.
}
_PAUSE: Final = 0.05
"""Seconds until an endpoint that was lost is connected to again; half to all of it, at random."""
_LOOK: Final = 1.0
"""Seconds between two looks at how many ranks there are."""
_PATIENCE: Final = 5.0
"""Seconds that an engine may take for each message that it was asked for."""
_END: Final = -1
"""Sequence number of what ends an answer."""
_MOST_REPEATED: Final = 100_000
"""Messages that are taken in one go; engines keep 10,000 unless they are told otherwise."""


@dataclass(frozen=True, slots=True)
class Publisher:
    """Where an engine tells its KV events, as ZMQ addresses such as `tcp://10.0.0.7:5557` or `ipc:///run/a.events`."""

    events: str
    replay: str | None = None
    """Where it can be asked for what it has told."""

    @property
    def has_ports(self) -> bool:
        """And so more than one rank may be there. A socket of the machine is one."""
        return self.events.startswith("tcp://")

    def of_rank(self, rank: int) -> "Publisher":
        """That of a data-parallel rank, which listens so many ports higher, as vLLM and SGLang have it."""
        return Publisher(_higher(self.events, rank), _higher(self.replay, rank) if self.replay is not None else None)


class EventSubscriber:
    """Run it as a task for as long as its targets are there. When it is cancelled, the index forgets them."""

    def __init__(self, index: PrefixIndex, target_ids: Sequence[str], publisher: Publisher, ranks: int = 1) -> None:
        """`target_ids`: that of each rank, or one that stands for all. `publisher`: of rank 0."""
        self._index = index
        self._target_ids = target_ids
        self._publisher = publisher
        self.ranks = ranks
        """How many there are. May grow while it runs, where one target stands for all."""

    async def run(self) -> None:
        """Raises zmq.ZMQError for an address that is none."""
        following: list[asyncio.Task[None]] = []
        try:
            with zmq.asyncio.Context() as context:
                try:
                    while True:
                        target_of = self._targets()
                        for target_id, publishers in Counter(target_of).items():
                            self._index.expect(target_id, publishers)
                        for rank in range(len(following), len(target_of)):
                            feed = Feed(self._index, target_of[rank])
                            each = _Following(context, self._publisher.of_rank(rank), feed)
                            following.append(asyncio.create_task(each.run()))
                        await asyncio.wait(following, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
                        for task in following:
                            if task.done():
                                task.result()
                finally:
                    for task in following:
                        task.cancel()
                    await asyncio.gather(*following, return_exceptions=True)
        finally:
            # Also where the endpoint was forgotten before: what came since would stay for ever.
            for target_id in self._target_ids:
                self._index.forget(target_id)

    def _targets(self) -> Sequence[str]:
        """Of each rank that has a publisher."""
        of_ranks = self._target_ids if len(self._target_ids) > 1 else [self._target_ids[0]] * self.ranks
        return of_ranks if self._publisher.has_ports else of_ranks[:1]


class _Following:
    """One publisher, through all its lives."""

    def __init__(self, context: zmq.asyncio.Context, publisher: Publisher, feed: Feed) -> None:
        self._context = context
        self._publisher = publisher
        self._feed = feed
        self._repeats = True
        """Whether it answers if it is asked. Once it did not, it is asked no more until it is connected to anew."""

    async def run(self) -> None:
        while True:
            await self._follow()
            await asyncio.sleep(random.uniform(0.5, 1) * _PAUSE)

    async def _follow(self) -> None:
        """Until the connection is lost. ZMQ would connect again by itself, but not after a message that was too big."""
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        with self._socket(zmq.SUB) as socket, socket.get_monitor_socket(events) as monitor:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            connected = asyncio.Event()
            socket.connect(self._publisher.events)
            receiving = asyncio.create_task(self._receive(socket, connected))
            lost = asyncio.create_task(_until_lost(monitor, connected))
            try:
                await asyncio.wait([receiving, lost], return_when=asyncio.FIRST_COMPLETED)
                if receiving.done():
                    receiving.result()
            finally:
                receiving.cancel()
                lost.cancel()
                await asyncio.wait([receiving, lost])
                socket.disable_monitor()

    async def _receive(self, socket: zmq.asyncio.Socket, connected: asyncio.Event) -> None:
        await connected.wait()
        self._feed.begin()
        self._repeats = True
        # Not before: what is published from here on waits to be received, so nothing is between the two.
        await self._catch_up()
        while True:
            frames = await socket.recv_multipart()
            if self._feed.missed(frames):
                await self._catch_up()
            await in_pieces(self._feed.take(frames))
            # Neither must a burst of messages hold up the requests that share this loop.
            await asyncio.sleep(0)

    async def _catch_up(self) -> None:
        if self._publisher.replay is not None and self._repeats:
            try:
                await catch_up(self._feed, partial(self._ask, self._publisher.replay))
            except UnansweredError:
                self._repeats = False

    async def _ask(self, address: str, first: int) -> AsyncIterator[Frames]:
        """What the engine repeats from this number on. Raises UnansweredError."""
        with self._socket(zmq.DEALER) as socket:
            socket.connect(address)
            await socket.send_multipart([b"", first.to_bytes(8, "big")])
            for _ in range(_MOST_REPEATED):
                message = await _answer(socket)
                if message.seq == _END:
                    return
                yield message
        raise UnansweredError

    def _socket(self, kind: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        for option, value in _OPTIONS.items():
            socket.setsockopt(option, value)
        return socket


async def _answer(socket: zmq.asyncio.Socket) -> Frames:
    """The next message of an answer; some engines put a topic before it, some do not. Raises UnansweredError."""
    try:
        async with asyncio.timeout(_PATIENCE):
            frames = await socket.recv_multipart()
        return from_frames([b"", *frames[-2:]])
    except (TimeoutError, EventDecodeError):
        raise UnansweredError from None


async def _until_lost(monitor: zmq.asyncio.Socket, connected: asyncio.Event) -> None:
    """Says when it is connected, until it is not."""
    while parse_monitor_message(await monitor.recv_multipart())["event"] != zmq.EVENT_DISCONNECTED:
        connected.set()


def _higher(address: str, by: int) -> str:
    if not by:
        return address
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + by}"
