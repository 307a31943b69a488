"""Engines that go wrong on command. Each answer says whose it is in every piece, so that a mix-up cannot hide."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.router.upstream import JSON, SSE, Exchange, Handler, Upstream, UpstreamConnection, never

PIECES = 12
"""Of a streamed answer."""


def expected(request: str) -> list[str]:
    """The pieces of the one right answer to a request."""
    return [f"<{request}.{number}>" for number in range(PIECES)]


def _request_of(exchange: Exchange) -> tuple[str, bool]:
    body = json.loads(exchange.body)
    return body["messages"][0]["content"].split()[0], body.get("stream") is True


def _event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _events(exchange: Exchange) -> Iterator[bytes]:
    request, _ = _request_of(exchange)
    yield _event(choices=[{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}])
    for piece in expected(request):
        yield _event(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
    yield _event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    if json.loads(exchange.body).get("stream_options"):
        yield _event(choices=[], usage={"prompt_tokens": 20, "completion_tokens": PIECES})
    yield b"data: [DONE]\n\n"


def _whole(exchange: Exchange) -> bytes:
    request, _ = _request_of(exchange)
    message = {"role": "assistant", "content": "".join(expected(request))}
    usage = {"prompt_tokens": 20, "completion_tokens": PIECES}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()


async def good(exchange: Exchange, behind: bytes = b"") -> None:
    """`behind`: what comes together with the end of a stream."""
    if not _request_of(exchange)[1]:
        await asyncio.sleep(0.02)
        await exchange.whole(_whole(exchange))
        return
    await exchange.begin_stream()
    for event in _events(exchange):
        await exchange.chunk(event)
        await asyncio.sleep(0.01)
    await exchange.write(b"0\r\n\r\n" + behind)


def status(code: int, headers: bytes = JSON) -> Handler:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(b'{"error":{"message":"%d"}}' % code, code, headers)

    return answer


def after(events: int, end: Handler) -> Handler:
    """So many events of a good stream, and then something else; an answer that is not streamed is `end` alone."""

    async def answer(exchange: Exchange) -> None:
        if _request_of(exchange)[1]:
            await exchange.begin_stream()
            for _, event in zip(range(events), _events(exchange), strict=False):
                await exchange.chunk(event)
                await asyncio.sleep(0.005)
        await end(exchange)

    return answer


async def reset(exchange: Exchange) -> None:
    exchange.abort()


async def close(exchange: Exchange) -> None:
    exchange.connection.transport.close()


async def garbage(exchange: Exchange) -> None:
    await exchange.write(b"\x00\xff\x13 no HTTP \r\n\r\n" * 20)


async def half_a_head(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-le")
    exchange.connection.transport.close()


async def error_event(exchange: Exchange) -> None:
    if not _request_of(exchange)[1]:
        await exchange.whole(b'{"error":{"message":"no"}}', 500)
        return
    await exchange.begin_stream()
    await exchange.chunk(b'data: {"error":{"message":"no","code":500}}\n\n')
    await exchange.chunk(b"data: [DONE]\n\n")
    await exchange.chunk(b"")


async def end_early(exchange: Exchange) -> None:
    if _request_of(exchange)[1]:
        await exchange.chunk(b"")  # As if it were whole.
    else:
        exchange.abort()


async def two_answers(exchange: Exchange) -> None:
    """The second is nobody's: it must never reach anybody. It comes with the first: one that comes when the connection
    has been given the next request is an answer to that, as far as anybody can tell."""
    body = b'{"choices":[{"message":{"content":"<nobody.0>"}}]}'
    head = b"HTTP/1.1 200 OK\r\n" + JSON + b"content-length: %d\r\n\r\n"
    if _request_of(exchange)[1]:
        await good(exchange, behind=head % len(body) + body)
    else:
        own = _whole(exchange)
        await exchange.write(head % len(own) + own + head % len(body) + body)


async def by_connection(exchange: Exchange) -> None:
    """Without a length: the end of the connection is the end of the answer."""
    if _request_of(exchange)[1]:
        await exchange.write(b"HTTP/1.1 200 OK\r\n" + SSE + b"connection: close\r\n\r\n")
        for event in _events(exchange):
            await exchange.write(event)
    else:
        await exchange.write(b"HTTP/1.1 200 OK\r\n" + JSON + b"connection: close\r\n\r\n" + _whole(exchange))
    exchange.connection.transport.close()


async def comments(exchange: Exchange) -> None:
    """Much before the first token, and then a good answer."""
    if not _request_of(exchange)[1]:
        await exchange.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 3)
        await exchange.whole(_whole(exchange))
        return
    await exchange.begin_stream()
    for _ in range(5):
        await exchange.chunk(b": still here\n\n")
        await asyncio.sleep(0.01)
    for event in _events(exchange):
        await exchange.chunk(event)
    await exchange.chunk(b"")


FAULTS: dict[str, Handler] = {
    "hang": never,
    "hang after a role": after(1, never),
    "hang within": after(5, never),
    "reset": reset,
    "reset within": after(5, reset),
    "close": close,
    "close within": after(5, close),
    "garbage": garbage,
    "garbage within": after(5, garbage),
    "half a head": half_a_head,
    "busy": status(429, JSON + b"retry-after: 1\r\n"),
    "unavailable": status(503, JSON + b"retry-after: 1\r\n"),
    "unauthorized": status(401),
    "not found": status(404),
    "failed": status(500),
    "error event": error_event,
    "error event within": after(5, error_event),
    "end within": after(5, end_early),
    "two answers": two_answers,
    "by connection": by_connection,
    "comments": comments,
}


@dataclass(slots=True, eq=False)
class ChaosEngine:
    """An engine that can also die, and come back at the same address."""

    name: str
    upstream: Upstream = field(default_factory=Upstream)
    _server: asyncio.Server | None = None

    def __post_init__(self) -> None:
        self.upstream.serve_models("m")
        self.upstream.pages[b"/health"] = (200, b"{}")
        self.upstream.serve_metrics("vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n")
        self.heal()

    def heal(self) -> None:
        self.upstream.answer = good

    def fail(self, fault: str) -> None:
        self.upstream.answer = FAULTS[fault]

    async def start(self) -> None:
        make = lambda: UpstreamConnection(self.upstream)  # noqa: E731
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(make, "127.0.0.1", self.upstream.port, backlog=1024)
        self.upstream.port = self._server.sockets[0].getsockname()[1]

    def die(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.upstream.connections):
            connection.transport.abort()

    @property
    def alive(self) -> bool:
        return self._server is not None
