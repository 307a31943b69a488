"""Follows one engine's KV events and keeps the index true to them.

One SUB socket for each publisher; ZMQ connects again by itself. What is lost meanwhile, or dropped because we were
too slow, shows as a gap in the sequence numbers, and the index then drops what that publisher had said. A message
that cannot be read counts as lost.
"""

import asyncio

import structlog
import zmq
import zmq.asyncio

from headwater.events import EventDecodeError, decode, from_frames
from headwater_router.index.prefixes import PrefixIndex

log = structlog.get_logger(__name__)


class EventSubscriber:
    """Run it as a task for as long as the endpoint is there. Whoever cancels it makes the index forget the endpoint."""

    def __init__(self, index: PrefixIndex, target_id: str, address: str) -> None:
        """`address`: of the engine's PUB socket, such as `tcp://10.0.0.7:5557`."""
        self._index = index
        self._target_id = target_id
        self._address = address

    async def run(self) -> None:
        """Raises zmq.ZMQError for an address that is none."""
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, 100_000)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5_000)
            socket.setsockopt(zmq.IPV6, 1)  # Of both families; without it, IPv4 alone.
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(self._address)
            while True:
                self.take(await socket.recv_multipart())
                # A burst of events must not hold up the requests that share this loop.
                await asyncio.sleep(0)

    def take(self, frames: list[bytes]) -> None:
        """One message, as its frames."""
        try:
            message = from_frames(frames)
            batch = decode(message.payload)
        except EventDecodeError as error:
            log.warning("KV events could not be read", endpoint=self._target_id, error=str(error))
            return
        if message.seq >= 0:
            self._index.apply(self._target_id, message.seq, batch)
