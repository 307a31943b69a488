"""What strangers send to any API of the engine: it is answered in the shape of that API, and the server does not fail.

test_server_fuzz.py looks longer, at chats and completions; these are the kinds of attack, tried on all paths.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from headwater_engine.config import EngineSettings
from headwater_engine.server.serve import EngineServer
from tests.engine.front import HANG, free_port, until
from tests.engine.tiny_pooled import make_encoder

TALK = [{"role": "user", "content": "Hi"}]
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TALK, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
    "/v1/messages": {"messages": TALK, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": TALK},
    "/tokenize": {"messages": TALK},
}
RIGHT_OF_VECTORS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "river"},
    "/v1/score": {"text_1": "river", "text_2": "stone"},
    "/v1/rerank": {"query": "river", "documents": ["stone"]},
}
VALUES: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, float("nan"), float("-inf")),
    *("", "\ud800", "\x00", [], {}, [[]], [None], [{}], [[[]]], {"": None}, [-1], [2**70], [[2**63]], ["a", 1]),
    [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "!"}}]}],
    [{"role": ["user"], "content": {"text": 5}}],
    [{"type": "function_call_output", "call_id": 5, "output": {}}],
    [{"type": "message", "role": "user", "content": [{"type": "input_file"}, 5, None]}],
    [{"role": "assistant", "content": [{"type": "tool_use", "id": [], "name": {}, "input": "x"}]}],
    [{"type": "function", "name": 5, "parameters": {"$ref": "#"}, "input_schema": [], "function": {"name": []}}],
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}, "format": {"type": []}},
    {"type": "tool", "name": {}, "effort": [], "budget_tokens": "x", "include_usage": "x"},
]
FIELDS = ["model", "stream", "stop", "tools", "tool_choice", "response_format", "text", "reasoning", "thinking"]
FIELDS += ["system", "instructions", "metadata", "previous_response_id", "temperature", "n", "logit_bias", "dimensions"]
FIELDS += ["truncate_prompt_tokens", "top_n", "encoding_format", "priority", "cache_salt", "stream_options", "user"]
DEEP = 20_000


def bodies(right: dict[str, Any]) -> Iterator[bytes]:
    """Wrong ones, nearly all of them. Fields that are not the path's first ones get a third of the values each."""
    for field in right:
        for value in VALUES:
            yield json.dumps(right | {field: value}).encode()
        for opening, end in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"content":', b"}]")):
            yield with_raw(right, field, opening * DEEP)[:-1]
            yield with_raw(right, field, opening * DEEP + b"1" + end * DEEP)
    for number, field in enumerate(FIELDS):
        for value in VALUES[number % 3 :: 3]:
            yield json.dumps(right | {field: value}).encode()
        yield with_raw(right, field, b"9" * 5000)
        yield with_raw(right, field, b"1e999")
    yield from (b"", b" ", b"null", b"[]", b"1", b'"a"', b"{", b"{}", b"\xff\xfe{}", b"\x00" * 100, b'{"a":"\xff"}')
    yield json.dumps(right).encode("utf-16")
    yield b'{"messages": "' + b"\\ud800" * 10_000 + b'"}'


def with_raw(right: dict[str, Any], field: str, value: bytes) -> bytes:
    others = {name: each for name, each in right.items() if name != field}
    return json.dumps(others | {field: 0})[:-2].encode() + value + b"}"


@asynccontextmanager
async def serving(**changes: Any) -> AsyncIterator[tuple[EngineServer, httpx.AsyncClient]]:
    """With a real engine process."""
    settings = EngineSettings(port=free_port(), served_model_name=["m"], threads=1, log_level="error", **changes)
    server = EngineServer(settings)
    running = asyncio.create_task(server.run())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", timeout=HANG) as http:
        await until(http, "/ready", 200)
        yield server, http
        server._ending.set()
        assert await running == 0


async def attack(server: EngineServer, http: httpx.AsyncClient, right: dict[str, dict[str, Any]]) -> None:
    for path, body in right.items():
        assert (await http.post(path, json=body)).status_code == 200, path
        for wrong in bodies(body):
            answer = await http.post(path, content=wrong, headers={"content-type": "application/json"})
            assert_in_shape(path, answer, wrong)
    for path, body in right.items():
        await attack_the_wire(server, path, json.dumps(body).encode())
        assert (await http.post(path, json=body)).status_code == 200, path
    async with asyncio.timeout(HANG):
        while server._app.running or server._engine.open_requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def assert_in_shape(path: str, answer: httpx.Response, sent: bytes) -> None:
    told = f"{path} {sent[:300]!r}: {answer.status_code} {answer.text[:600]}"
    assert answer.status_code in (200, 400, 404, 413), told
    assert "Traceback" not in answer.text, told
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert '"error":{' not in answer.text, told
    elif answer.status_code != 200:
        said = answer.json()
        error = said.pop("error")
        if path.startswith("/v1/messages"):
            assert said.pop("type") == "error", told
            said.pop("request_id", None)
            assert set(error) == {"type", "message"}, told
        else:
            assert set(error) == {"message", "type", "param", "code"}, told
        assert not said, told
        assert isinstance(error["message"], str) and 0 < len(error["message"]) < 2000, told


async def attack_the_wire(server: EngineServer, path: str, body: bytes) -> None:
    """Requests that are no requests, and clients that leave at any byte."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\n".encode()
    length = b"content-length: %d\r\n" % len(body)
    whole = head + length + b"\r\n" + body
    wrong = [
        head + b"content-length: -1\r\n\r\n" + body,
        head + length + b"content-length: 5\r\n\r\n" + body,
        head + b"content-length: 99999999999999999999\r\n\r\n",
        head + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + body,
        head + length + b"transfer-encoding: chunked\r\n\r\n" + body,
        head + length + b"content-encoding: gzip\r\n\r\n" + body,
        head + b"x: " + b"a" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + b"\x00" * 200,
        whole.replace(b"HTTP/1.1", b"HTTP/9.9"),
        whole.replace(b"POST", b"TRACE"),
    ]
    for request in wrong:
        answer = await exchange(server, request)
        assert answer == b"" or b" 4" in answer[:13] or b" 5" in answer[:13], (request[:200], answer[:200])
        assert not answer.startswith(b"HTTP/1.1 500"), (request[:200], answer)
    for sent in (1, 20, len(head), len(whole) - len(body), len(whole) - 1, len(whole)):
        await exchange(server, whole[:sent], stays=False)


async def exchange(server: EngineServer, request: bytes, *, stays: bool = True) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server._server.port)
    with closing(writer):
        writer.write(request)
        try:
            await writer.drain()
            if not stays:
                return b""
            writer.write_eof()
            async with asyncio.timeout(HANG):
                return await reader.read()
        except ConnectionError:  # It has said why, and closed.
            return b""


@pytest.mark.timeout(900)
async def test_an_engine_that_generates_answers_every_attack_in_the_shape_of_its_api() -> None:
    async with serving(model="random:tiny", max_model_len=256, num_blocks=96, max_num_seqs=8) as (server, http):
        await attack(server, http, RIGHT)


@pytest.mark.timeout(900)
async def test_an_engine_that_makes_vectors_answers_every_attack_in_the_shape_of_its_api(tmp_path: Path) -> None:
    async with serving(model=str(make_encoder("bert", tmp_path)), max_num_seqs=8) as (server, http):
        await attack(server, http, RIGHT_OF_VECTORS)
