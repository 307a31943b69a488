"""uvicorn's HTTP protocol with a limit on the head of a request, which httptools does not have."""

import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headwater.openai.errors import HeadersTooLargeError


class _HeadTooLargeError(Exception):
    pass


def limited_protocol(max_head: int) -> type[HttpToolsProtocol]:
    """The protocol class for heads of at most `max_head` bytes; a larger one is answered with a 431."""

    class LimitedProtocol(HttpToolsProtocol):
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
