"""Follows one engine's KV events and keeps the index true to them.

One SUB socket for each publisher. What is lost while it is not connected, or dropped because we were too slow, shows as
a gap in the sequence numbers, and the index then drops what that publisher had said. A message that cannot be read
counts as lost.

Whatever an engine sends, nobody waits for long: messages have a largest size, and are taken over in pieces between
which others have their turn.
"""

import asyncio
import random
from collections.abc import Iterator
from typing import Final

import structlog
import zmq
import zmq.asyncio

from headwater.events import MOST_BYTES, EventDecodeError, decode, from_frames
from headwater_router.index.prefixes import PrefixIndex

log = structlog.get_logger(__name__)

_OPTIONS: Final[dict[int, int | bytes]] = {
    zmq.LINGER: 0,
    zmq.RCVHWM: 1000,  # Messages that wait to be taken. What comes beyond is lost, and shows as a gap.
    zmq.MAXMSGSIZE: 4 * MOST_BYTES,  # For what is larger, no memory is taken.
    zmq.RECONNECT_IVL_MAX: 5_000,
    zmq.IPV6: 1,  # Of both families; without it, IPv4 alone.
    zmq.SUBSCRIBE: b"",
}
_PAUSE: Final = 1.0
"""Seconds until an endpoint that was lost is connected to again; half to all of it, at random."""


class EventSubscriber:
    """Run it as a task for as long as the endpoint is there. When it is cancelled, the index forgets the endpoint."""

    def __init__(self, index: PrefixIndex, target_id: str, address: str) -> None:
        """`address`: of the engine's PUB socket, such as `tcp://10.0.0.7:5557`."""
        self._index = index
        self._target_id = target_id
        self._address = address
        self._readable = True

    async def run(self) -> None:
        """Raises zmq.ZMQError for an address that is none."""
        try:
            with zmq.asyncio.Context() as context:
                while True:
                    await self._follow(context)
                    await asyncio.sleep(random.uniform(0.5, 1) * _PAUSE)
        finally:
            # Also where the endpoint was forgotten before: what came since would stay for ever.
            self._index.forget(self._target_id)

    async def _follow(self, context: zmq.asyncio.Context) -> None:
        """Until the connection is lost. ZMQ would connect again by itself, but not after a message that was too big."""
        with context.socket(zmq.SUB) as socket, socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            for option, value in _OPTIONS.items():
                socket.setsockopt(option, value)
            socket.connect(self._address)
            receiving = asyncio.create_task(self._receive(socket))
            lost = asyncio.ensure_future(monitor.recv_multipart())
            try:
                await asyncio.wait([receiving, lost], return_when=asyncio.FIRST_COMPLETED)
                if receiving.done():
                    receiving.result()
            finally:
                receiving.cancel()
                lost.cancel()
                socket.disable_monitor()

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            for _ in self.take(await socket.recv_multipart()):
                await asyncio.sleep(0)
            # Neither must a burst of messages hold up the requests that share this loop.
            await asyncio.sleep(0)

    def take(self, frames: list[bytes]) -> Iterator[None]:
        """One message, as its frames. Works while it is iterated over, and pauses now and then."""
        try:
            message = from_frames(frames)
            batch = decode(message.payload)
            if message.seq >= 0:
                yield from self._index.apply(self._target_id, message.seq, batch.dp_rank, batch.events)
            self._readable = True
        except EventDecodeError as error:
            if self._readable:
                # Once, not for each that follows.
                log.warning("KV events could not be read", endpoint=self._target_id, error=str(error))
            self._readable = False
