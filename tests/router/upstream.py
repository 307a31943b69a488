"""An engine's HTTP side, as it should be and as it should not: each test says what it does with a request."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

JSON = b"content-type: application/json\r\n"
OK = b'{"choices":[{"message":{"content":"ok"}}],"output":[],"content":[]}'
"""An answer on any path."""
WORD = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n'
SSE = b"content-type: text/event-stream; charset=utf-8\r\n"


@dataclass(slots=True, eq=False)
class Exchange:
    """One request, and the means to answer it, rightly or wrongly."""

    head: bytes
    body: bytes
    connection: "UpstreamConnection"

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def headers(self) -> dict[bytes, bytes]:
        pairs = (line.split(b": ", 1) for line in self.head.split(b"\r\n")[1:] if line)
        return {name.lower(): value for name, value in pairs}

    async def whole(self, body: bytes = OK, status: int = 200, headers: bytes = JSON) -> None:
        await self.write(b"HTTP/1.1 %d X\r\n%scontent-length: %d\r\n\r\n%s" % (status, headers, len(body), body))

    async def begin_stream(self) -> None:
        await self.write(b"HTTP/1.1 200 OK\r\n" + SSE + b"transfer-encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        """An empty one ends the answer."""
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def write(self, data: bytes) -> None:
        """Returns once the other side takes more."""
        self.connection.transport.write(data)
        await self.connection.writable.wait()

    def abort(self) -> None:
        self.connection.transport.abort()


class UpstreamConnection(asyncio.Protocol):
    def __init__(self, upstream: "Upstream") -> None:
        self.upstream = upstream
        self.gone = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.served_posts = 0
        self._received = b""
        self._answer: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.upstream.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.connections.discard(self)
        self.gone.set()
        if self._answer is not None:
            self._answer.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        exchange = Exchange(head, b"", self)
        length = int(exchange.headers.get(b"content-length", b"0"))
        if len(rest) < length:
            return
        exchange.body, self._received = rest[:length], rest[length:]
        self._answer = asyncio.ensure_future(self.upstream.dispatch(exchange))


Handler = Callable[[Exchange], Awaitable[None]]


async def answer_at_once(exchange: Exchange) -> None:
    await exchange.whole()


async def never(exchange: Exchange) -> None:
    await exchange.connection.gone.wait()


def answer_with(status: int, body: bytes | None = None) -> Handler:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(body if body is not None else OK if status == 200 else b"{}", status)

    return answer


def stream_in_two(first: bytes, last: bytes, release: asyncio.Event) -> Handler:
    """The second piece is held until `release` is set."""

    async def answer(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(first)
        await release.wait()
        await exchange.chunk(last)
        await exchange.chunk(b"")

    return answer


@dataclass(slots=True, eq=False)
class Upstream:
    """One engine. Change its fields to change what it does."""

    port: int = 0
    answer: Handler = answer_at_once
    """To a POST."""
    pages: dict[bytes, tuple[int, bytes] | Handler] = field(default_factory=dict)
    """Status and body, by path, or what answers there."""
    exchanges: list[Exchange] = field(default_factory=list)
    """POSTs so far."""
    probed: dict[bytes, int] = field(default_factory=dict)
    """Times that a page was asked for."""
    connections: set[UpstreamConnection] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve_models(self, *cards: str | dict[str, Any]) -> None:
        data = [{"id": card, "object": "model"} if isinstance(card, str) else card for card in cards]
        self.pages[b"/v1/models"] = (200, json.dumps({"object": "list", "data": data}).encode())

    def serve_metrics(self, page: str) -> None:
        self.pages[b"/metrics"] = (200, page.encode())

    async def dispatch(self, exchange: Exchange) -> None:
        method, path, _ = exchange.line.split(b" ")
        if method == b"POST":
            self.exchanges.append(exchange)
            exchange.connection.served_posts += 1
            await self.answer(exchange)
        else:
            page = self.pages.get(path, (404, b"{}"))
            await (page(exchange) if callable(page) else exchange.whole(page[1], page[0]))
            self.probed[path] = self.probed.get(path, 0) + 1

    @property
    def post_connections(self) -> int:
        """Open ones that carried a POST; the others are the prober's."""
        return sum(connection.served_posts > 0 for connection in self.connections)


@asynccontextmanager
async def upstream(*models: str | dict[str, Any], port: int = 0) -> AsyncIterator[Upstream]:
    """A well-behaved one, which serves `models` ("m" if none are given)."""
    engine = Upstream()
    engine.serve_models(*(models or ("m",)))
    engine.pages[b"/health"] = engine.pages[b"/ready"] = (200, b"{}")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: UpstreamConnection(engine), "127.0.0.1", port, backlog=1024)
    engine.port = server.sockets[0].getsockname()[1]
    try:
        yield engine
    finally:
        server.close()
        for connection in list(engine.connections):
            connection.transport.abort()
