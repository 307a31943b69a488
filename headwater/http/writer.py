"""How an answer gets to its client: framed as the request's version of HTTP knows it, and held back where it is slow.

Pieces of a stream are written straight to the socket.
"""

import asyncio
import contextlib
import fcntl
import struct
import termios
import time
from http import HTTPStatus
from typing import Final, cast

from headwater.http.clients import Clients
from headwater.http.headers import Headers
from headwater.http.request import Request

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nx-request-id: ".encode() for status in HTTPStatus
}
_WITHOUT_BODY: Final = frozenset((204, 304))


class AnswerWriter(asyncio.Protocol):
    """Who answers calls `begin`, then `write` any number of times, then `end`; or just `answer`."""

    __slots__ = ("_chunked", "_clients", "_complete", "_head", "_last_answer", "_loop", "_mute", "_request",
                 "_transport", "_unread", "_writable", "answer_began", "bytes_sent", "status",
                 "write_paused")  # fmt: skip

    def __init__(self, clients: Clients, *, last_answer: bool) -> None:
        """`last_answer`: the connection ends with its first answer."""
        self._clients = clients
        self._last_answer = last_answer
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        """That is being answered."""
        self._head = b""
        """Goes out with the first bytes behind it: a write is a system call."""
        self._chunked = self._mute = self._complete = False
        self.answer_began = False
        self.status = 0
        """Of the answer that is being sent, or was sent last."""
        self.bytes_sent = 0
        """Of the body of the answer that is being sent, or was sent last."""
        self.write_paused = False
        """Whether the client does not keep up."""
        self._writable: asyncio.Future[None] | None = None
        self._unread = 0
        """Bytes that the client had not taken when that was last looked at."""

    def begin(self, status: int, headers: Headers) -> None:
        """Without a content-length among the headers, the body's end is told as the client's version knows it.

        The request's id is added as `x-request-id`.
        """
        request = self._request
        assert request is not None
        self.answer_began = True
        self.status = status
        if self._clients.cors is not None:
            headers = self._clients.cors.applied(request, headers)
        parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\nx-request-id: " % status, request.id, b"\r\n"]
        if request.admitted is not None and (own := request.admitted.headers):
            for field, text in own.items():
                parts += (field.encode(), b": ", text.encode(), b"\r\n")
            # What goes through may have some of the same names: an engine's own limits, behind those of a client's key.
            headers = [each for each in headers if each[0].decode("latin-1") not in own]
        self._mute = request.method == b"HEAD" or status in _WITHOUT_BODY
        self._chunked = not self._mute
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self._chunked = False
        if request.http_1_0:
            request.keep_alive = self._chunked = False
        if self._chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        if not request.keep_alive or self._last_answer or self._clients.leaving:
            request.keep_alive = False
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def write(self, piece: bytes) -> bool:
        """Says False where the client does not keep up: then wait until it is `drained`."""
        if self._mute:
            piece = b""
        elif piece:
            self.bytes_sent += len(piece)
            if self._chunked:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self._send(piece)
        return not self.write_paused

    def relay(self, piece: bytes) -> None:
        """Write a piece of an answer that has begun, to a client that keeps up: `write`, for each token."""
        if self._head:  # What came until now was held back, and so is the head.
            self.write(piece)
            return
        transport = self._transport
        assert transport is not None
        # uvloop's transports raise once they are closed, which may be before we are told so.
        if not transport.is_closing():
            size = len(piece)
            self.bytes_sent += size
            transport.write(b"%x\r\n%b\r\n" % (size, piece) if self._chunked else piece)

    def end(self, piece: bytes = b"") -> None:
        """With the last piece of the body."""
        self._complete = True
        if self._mute:
            piece = b""
        self.bytes_sent += len(piece)
        if self._chunked:
            piece = b"%x\r\n%b\r\n0\r\n\r\n" % (len(piece), piece) if piece else b"0\r\n\r\n"
        self._send(piece)

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.end(body)

    async def drained(self) -> None:
        """Wait until the client has read most of what was written."""
        while self.write_paused:
            self._writable = self._loop.create_future()
            await self._writable

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        if self._head:
            data, self._head = self._head + data, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    # Clients that do not read

    def look_at_reader(self, now: float) -> None:
        """An answer waits for the client: let go of one that has taken nothing since the last look."""
        assert self._transport is not None
        if self._transport.is_closing():
            return  # Its time for that is counted elsewhere.
        before, self._unread = self._unread, self._not_taken()
        if self._unread >= before:
            self._transport.abort()
        else:
            del self._clients.unread[self]
            self._clients.unread[self] = now

    def _not_taken(self) -> int:
        """Bytes of answers: here, and in the system, which takes them in large lumps from here."""
        assert self._transport is not None
        waiting = self._transport.get_write_buffer_size()
        with contextlib.suppress(OSError):
            descriptor = self._transport.get_extra_info("socket").fileno()
            waiting += struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
        return waiting

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unread = self._not_taken()
        self._clients.unread[self] = time.monotonic()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._clients.unread.pop(self, None)
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
