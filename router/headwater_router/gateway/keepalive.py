"""A comment line now and then while a stream waits for its first token.

Load balancers cut a connection on which nothing moves for a minute, and a long prompt on a busy engine takes longer.
The price is that the status goes out before it is known: what fails later is told by an error event.
"""

import asyncio
from typing import Final

from headwater.http.answering import Answering
from headwater.http.replies import EVENT_STREAM

_COMMENT: Final = b": keep-alive\n\n"


class KeepAlive:
    """Begins the answer at its first comment. To be stopped by whoever has something better to say."""

    __slots__ = ("_client", "_interval", "_timer")

    def __init__(self, client: Answering, interval: float) -> None:
        """`interval`: seconds."""
        self._client = client
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._comment)

    def _comment(self) -> None:
        if not self._client.answer_began:
            self._client.begin(200, EVENT_STREAM)
        self._client.write(_COMMENT)
        self._wait()
