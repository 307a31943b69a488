"""How connections notice that nobody is there any more: a node without power sends no farewell.

An answer may be silent for minutes, so silence proves nothing; the system asks instead, and the other side's system
answers without its program. What was sent and is not acknowledged tells the same sooner.
"""

import contextlib
import socket
from typing import Final

_IDLE_SECONDS: Final = 15
"""Without a byte, before the first question."""
_BETWEEN_SECONDS: Final = 5
_QUESTIONS: Final = 3
_UNACKNOWLEDGED_SECONDS: Final = 30
"""That bytes may stay unacknowledged. Linux counts a side that lives but reads nothing for so long, its buffers being
full, among the gone."""

_OPTIONS: Final = [
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", _IDLE_SECONDS),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", _BETWEEN_SECONDS),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", _QUESTIONS),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", _UNACKNOWLEDGED_SECONDS * 1000),
]
_KNOWN: Final = [(level, getattr(socket, name), value) for level, name, value in _OPTIONS if hasattr(socket, name)]
"""Not every system has all of them."""


def keep_alive(connected: socket.socket) -> None:
    """Have a connection whose other side is gone end within half a minute; small pieces go out at once.

    Never raises: a connection that is closed already, or is no TCP, is left as it is. `connected` may also be what a
    transport gives as its socket.
    """
    with contextlib.suppress(OSError):
        for level, option, value in _KNOWN:
            connected.setsockopt(level, option, value)
