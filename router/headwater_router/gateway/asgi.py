"""The little of ASGI that the gateway needs: read a body, send a whole answer."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from headwater.openai.errors import APIError, RequestTooLargeError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_encode = msgspec.json.Encoder().encode


class ClientGoneError(Exception):
    """The client closed the connection; nobody is left to answer."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole request body. Raises RequestTooLargeError above `limit` bytes, ClientGoneError."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body") and len(body) <= limit:
        return body
    pieces, size = [body], len(body)
    while message["type"] == "http.request" and message.get("more_body"):
        if size > limit:
            break
        message = await receive()
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
    if message["type"] != "http.request":
        raise ClientGoneError
    if size > limit:
        raise RequestTooLargeError(f"The request body is larger than the {limit / 2**20:g} MiB that are allowed.")
    return b"".join(pieces)


async def send_json(
    send: Send, content: Any, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    await send_bytes(send, _encode(content), b"application/json", status, headers)


async def send_bytes(
    send: Send, body: bytes, media_type: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    head = [(b"content-type", media_type), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: APIError) -> None:
    headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    await send_json(send, error.body(), error.status, headers)
