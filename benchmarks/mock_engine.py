"""A stand-in for engines that costs next to nothing: it answers at once, or streams chunks at a fixed pace.

    python benchmarks/mock_engine.py --port 9001 --port 9002 [--interval-ms 2]

A stream has as many chunks as the request's `max_tokens`. Raw asyncio, no framework: in a benchmark of routers on few
cores the engine's own CPU must not count. It knows the paths that routers look at before they send anything.
"""

import argparse
import asyncio
import re
from collections.abc import Callable
from typing import cast

import httptools
import uvloop

MODEL = "mock"
_TOKENS = re.compile(rb'"max_tokens":(\d+)')
_USAGE = (
    b'"usage":{"prompt_tokens":512,"completion_tokens":64,"total_tokens":576,'
    b'"prompt_tokens_details":{"cached_tokens":256}}'
)
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"mock","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"' + b"All streams begin. " * 12 + b'"},"finish_reason":"stop"}],'
    + _USAGE + b"}"
)  # fmt: skip
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"mock","choices":'
    b'[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
_LAST = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[],' + _USAGE + b"}\n\ndata: [DONE]\n\n"
_PAGES = {
    b"/v1/models": b'{"object":"list","data":[{"id":"mock","object":"model","owned_by":"mock","root":"mock"}]}',
    b"/metrics": b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\n",
}
_INFO = b'{"model_path":"mock","served_model_name":"mock","is_generation":true,"status":"ok"}'


def _whole(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


class MockEngine(asyncio.Protocol):
    """One connection."""

    def __init__(self, interval: float) -> None:
        """`interval`: seconds between two chunks."""
        self._chunks = 0
        self._interval = interval
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body = b""
        self._timer: asyncio.TimerHandle | None = None
        self._write: Callable[[bytes], None] = lambda data: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast("asyncio.Transport", transport).write

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._path = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() != b"POST":
            self._write(_whole(_PAGES.get(self._path, _INFO)))
        elif b'"stream":true' in self._body:
            asked = _TOKENS.search(self._body)
            self._chunks = int(asked[1]) if asked else 1
            self._write(_STREAM_HEAD + _chunked(_CHUNK))
            self._stream(1)
        else:
            self._write(_whole(_ANSWER))

    def _stream(self, sent: int) -> None:
        if sent >= self._chunks:
            self._write(_chunked(_LAST) + b"0\r\n\r\n")
            return
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._send_chunk, sent)

    def _send_chunk(self, sent: int) -> None:
        self._write(_chunked(_CHUNK))
        self._stream(sent + 1)


async def serve(ports: list[int], interval: float) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(lambda: MockEngine(interval), "127.0.0.1", port, backlog=8192)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, action="append", required=True, help="repeat it for several engines")
    parser.add_argument("--interval-ms", type=float, default=2.0, help="between two chunks of a stream")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.interval_ms / 1000))


if __name__ == "__main__":
    main()
