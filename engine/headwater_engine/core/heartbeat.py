"""Says that a step goes on, while it does: a large model on a few cores takes longer for one than anybody should wait.

Whoever works counts what it has done, layer by layer. A thread looks at the count each second, and tells the HTTP
process where it has moved. It says nothing of its own: where a layer hangs nothing moves, and nothing is said.
"""

import threading
from typing import Final

import msgspec
import zmq

from headwater_engine.core.messages import Alive

INTERVAL: Final = 1.0
"""Seconds between two looks."""


class Heartbeat:
    """`beat` from any one thread; the thread that looks runs from `start` on, for as long as the process."""

    def __init__(self, replies: str) -> None:
        """`replies`: the ZMQ endpoint where the HTTP process listens."""
        self._replies = replies
        self._beats = 0
        self._seen = 0

    def beat(self) -> None:
        self._beats += 1

    def moved(self) -> bool:
        """Whether there was a beat since the last call."""
        before, self._seen = self._seen, self._beats
        return before != self._seen

    def start(self) -> None:
        threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def _watch(self) -> None:
        alive = msgspec.msgpack.encode(Alive())
        pause = threading.Event()
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._replies)
            while not pause.wait(INTERVAL):
                if self.moved():
                    socket.send(alive)
