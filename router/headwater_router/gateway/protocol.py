"""uvicorn's HTTP protocol, with what a router of token streams needs beyond it.

A limit on the head of a request, which httptools does not have. And a `ClientLink` in the scope's extensions: word of
a client that leaves without a task that waits for it, and a short way out for the pieces of a stream.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from headwater.openai.errors import HeadersTooLargeError
from headwater_router.gateway.asgi import Scope

_EXTENSION: Final = "headwater"


class ClientLink:
    """The client's side of one request."""

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: "LinkedProtocol", cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    def watch(self, on_leave: Callable[[], None] | None) -> None:
        """Have `on_leave` called when the client leaves, or now if it has left; None ends that."""
        self._protocol.on_leave = on_leave
        if on_leave is not None and self._protocol.left:
            on_leave()

    def write_chunk(self, chunk: bytes) -> bool:
        """Write a piece of an answer that has begun. Says False where it has to take the way through `send`."""
        if self._protocol.flow.write_paused or not self._cycle.chunked_encoding:
            return False
        self._protocol.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        return True


def client_link(scope: Scope) -> ClientLink:
    link: ClientLink = scope["extensions"][_EXTENSION]["client"]
    return link


class _OneWrite:
    """A transport that writes an answer's head together with the body behind it: a write is a system call."""

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            # Should there be no body, or one that is long in coming.
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class LinkedProtocol(HttpToolsProtocol):
    """Gives each request its ClientLink."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left = False
        self.on_leave: Callable[[], None] | None = None
        """Of the request that is being answered; others in a pipeline wait for it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.left = True
        if self.on_leave is not None:
            self.on_leave()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.cycle is not None:
            self.scope["extensions"] = {_EXTENSION: {"client": ClientLink(self, self.cycle)}}


class _HeadTooLargeError(Exception):
    pass


def limited_protocol(max_head: int) -> type[LinkedProtocol]:
    """The protocol class for heads of at most `max_head` bytes; a larger one is answered with a 431."""

    class LimitedProtocol(LinkedProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._head_bytes = 0
            self._received = 0
            self._in_head = False

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # A single endless header never reaches `on_header`.
            self._received = self._received + len(data) if self._in_head else 0
            if self._received > max_head and not self.transport.is_closing():
                self._refuse()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True
            self._head_bytes = 0

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            if self._head_bytes > max_head:
                self._refuse()
            else:
                super().send_400_response(msg)

        def _count(self, size: int) -> None:
            self._head_bytes += size
            if self._head_bytes > max_head:
                raise _HeadTooLargeError

        def _refuse(self) -> None:
            error = HeadersTooLargeError(f"The request's head is larger than the {max_head // 1024} KiB allowed.")
            body = json.dumps(error.body()).encode()
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
            )
            self.transport.close()

    return LimitedProtocol
