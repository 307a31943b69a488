"""Whatever a client sends: no failure of the server's own, no pause for others, and nothing is left behind.

A real engine process runs behind the server, which is in this process, so that its loop can be watched. The budget is
fixed, and the examples are the same each time. `FUZZ_EXAMPLES=20000` looks longer, and elsewhere.
"""

import asyncio
import gzip
import json
import math
import os
import random
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import Phase, example, given, seed, settings
from hypothesis import strategies as st

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.completions import CompletionRequest
from headwater.openai.unsupported import UnsupportedInChat
from headwater_engine.config import EngineSettings
from headwater_engine.server.serve import EngineServer
from tests.engine.front import CHAT, HANG, TEXT, free_port

T = TypeVar("T")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "400"))
LARGEST = 64 * 1024
LONGEST_PAUSE = 1.0
"""Seconds of CPU time of the loop's own thread, in which nobody else is served: a busy machine makes them no longer."""
PUBLISHED = json.loads((Path(__file__).parents[1] / "fixtures" / "api" / "request_fields.json").read_text())
FIELDS = sorted({name for of in PUBLISHED.values() for kind in ("chat", "completions") for name in of[kind]})
USED = sorted(
    (ChatCompletionRequest.model_fields.keys() | CompletionRequest.model_fields.keys())
    - UnsupportedInChat.model_fields.keys()
)
"""Fields that do something; whatever stands in the others is never looked at."""
CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"
VOCABULARY = 512
"""Rows of random:tiny."""


class Watched:
    """The server with its engine, in a loop that is driven by each example and measured all along."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        settings = EngineSettings(
            model="random:tiny",
            port=free_port(),
            max_model_len=256,
            num_blocks=96,
            max_num_seqs=8,
            max_waiting=64,
            served_model_name=["tiny"],
            log_level="error",
            max_body_mib=LARGEST / 2**20,
        )
        self.port = settings.port
        self.server = EngineServer(settings)
        self.longest = 0.0
        self._running = self.loop.create_task(self.server.run())
        self.loop.run_until_complete(self.until_ready())
        # The first chat starts the process that renders templates.
        chat = Attack("POST", CHATS, json.dumps({**CHAT, "max_tokens": 1}).encode())
        assert b"200 OK" in self.loop.run_until_complete(self.ask(chat.bytes))
        self._rendered = self.loop.run_until_complete(self.rendered())
        self.at_rest: tuple[int, int] | None = None
        """Descriptors and tasks before the first example; pytest and hypothesis open some of their own before that."""
        self._looked_at = time.thread_time()  # what it takes to begin holds nobody up
        self._look()

    async def until_ready(self) -> None:
        async with asyncio.timeout(HANG):
            while b"200 OK" not in await self.ask(b"GET /ready HTTP/1.1\r\nconnection: close\r\n\r\n"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def ask(self, request: bytes, *, sent: int | None = None, read: int = -1) -> bytes:
        """All of the answer. The client leaves after `sent` bytes of the request, or `read` of the answer."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionRefusedError:
            return b""
        with closing(writer):
            try:
                writer.write(request[:sent])
                await writer.drain()
                return b"" if sent is not None else await reader.read(read)
            except ConnectionError:  # It has said why, and closed.
                return b""

    async def rendered(self) -> bytes:
        """The tokens of a conversation."""
        answer = await self.ask(Attack("POST", "/tokenize", json.dumps(CHAT).encode()).bytes)
        return answer.rpartition(b"\r\n")[2]

    async def renders_as_before(self) -> bool:
        """Nobody gets what another has asked for."""
        return await self.rendered() == self._rendered

    def run(self, example: Coroutine[Any, Any, T]) -> T:
        """What hypothesis did since the last one is not counted."""
        self._looked_at = time.thread_time()
        return self.loop.run_until_complete(example)

    def _look(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._looked_at)
        self._looked_at = now
        self.loop.call_later(0.01, self._look)

    def descriptors(self) -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def tasks(self) -> int:
        return len(asyncio.all_tasks(self.loop))

    def begin(self) -> None:
        """An example begins; within a task."""
        if self.at_rest is None:
            self.at_rest = self.descriptors(), self.tasks()

    def left_behind(self) -> dict[str, Any]:
        """What is not as it was before the first example."""
        assert self.at_rest is not None
        app, engine, bodies = self.server._app, self.server._engine, self.server._server.clients.bodies
        stats = self.server._metrics._seen
        held = {
            "requests": app.running,
            "open at the engine": engine.open_requests,
            "answers": app._admission._open,
            "prompt tokens": app._admission._tokens,
            "bytes of bodies": bodies.in_flight,
            "connections": len(self.server._server.clients.open),
            "running": stats.running,
            "waiting": stats.waiting,
            "blocks": stats.blocks_used,
            "descriptors": max(0, self.descriptors() - self.at_rest[0]),
            "tasks": max(0, self.tasks() - self.at_rest[1]),
        }
        return {name: value for name, value in held.items() if value}

    async def come_to_rest(self) -> None:
        left: dict[str, Any] = {}
        try:
            async with asyncio.timeout(HANG):
                while left := self.left_behind():  # noqa: ASYNC110 - the system tells nobody of closed descriptors
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(f"left behind: {left}") from None

    def close(self) -> None:
        self.server._ending.set()
        self.loop.run_until_complete(self._running)
        self.loop.close()


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with closing(Watched()) as watched:
        yield watched


# What clients send

texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Cn", "Lo", "So"]), max_size=20),  # lone surrogates, too
    st.sampled_from(["", "\ud800", "\x00", "<|im_end|>", "\ufffd", "\u202e", "a" * 50_000, "é" * 9_000, "{{ 1/0 }}"]),
)
numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**400, -(10**400)]),
    st.sampled_from([VOCABULARY - 1, VOCABULARY, 256, 257, 0.0, -0.0, 1e308, -1e308, 5e-324, 1.5, 1e-9]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=5),
    st.dictionaries(texts, scalars, max_size=5),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)),
    st.builds(lambda value, count: [value] * count, scalars.filter(lambda value: len(str(value)) < 9), st.just(2000)),
    st.builds(lambda count: [str(number) for number in range(count)], st.sampled_from([16, 17, 5000])),
    st.dictionaries(
        st.sampled_from([0, 255, VOCABULARY - 1, VOCABULARY, 2**31]).map(str), st.sampled_from([-100, 100, 101, 1e999])
    ),
)
messages = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "refusal", "function_call"]),
        st.one_of(st.sampled_from(["user", "assistant", "system", "tool", "developer", "function"]), values),
        max_size=4,
    ),
    max_size=4,
)
ids = st.sampled_from([0, 5, 255, 258, VOCABULARY - 1, VOCABULARY, VOCABULARY + 1, 2**31 - 1, 2**31, -1])
prompts = st.one_of(
    values,
    st.lists(st.integers(0, VOCABULARY), max_size=300),
    st.lists(st.lists(ids, max_size=4), max_size=40),
)


def filled(item: Any) -> list[Any]:
    """A list of it that takes as many bytes as a body may have."""
    return [item] * ((LARGEST - 400) // (len(json.dumps(item)) + 2))


parts = st.sampled_from([{"type": "text", "text": "a"}, {"type": "refusal", "refusal": ""}, {"type": "text"}, "a", 0])
turns = st.sampled_from([{"role": "user", "content": "a"}, {"role": "assistant"}, {"role": "tool", "content": ""}])
calls = st.just({"id": "1", "function": {"name": "f", "arguments": "{}"}})
fitting = {
    "messages": st.one_of(
        messages,
        turns.map(filled),
        parts.map(lambda part: [{"role": "user", "content": filled(part)}]),
        calls.map(lambda call: [{"role": "assistant", "tool_calls": filled(call)}]),
    ),
    "prompt": st.one_of(prompts, st.sampled_from([0, VOCABULARY, "x", [0], [0] * 300]).map(filled)),
    "tools": st.one_of(values, st.sampled_from([{}, {"type": "function", "function": {"name": "f"}}]).map(filled)),
    "chat_template_kwargs": st.dictionaries(texts, values, max_size=3),
    "logit_bias": st.one_of(
        st.dictionaries(ids.map(str), st.sampled_from([-100, 100, 0, 101, 1e999]), max_size=3),
        st.integers(1, 5000).map(lambda count: {str(token): 1 for token in range(count)}),
    ),
    "allowed_token_ids": st.lists(ids, max_size=3) | st.just(filled(5)),
    "stop_token_ids": st.lists(ids, max_size=3) | st.just(filled(5)),
    "stop": st.lists(texts, max_size=4) | st.sampled_from(["", "a"]).map(filled),
    "stream_options": st.dictionaries(
        st.sampled_from(["include_usage", "continuous_usage_stats"]), st.booleans() | values, max_size=2
    ),
}
"""What some fields are for, and too much of it; the others are numbers, or flags."""


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A request that is right but for one field, or a few."""
    path, base = draw(st.sampled_from([(CHATS, CHAT), (TEXTS, TEXT), ("/tokenize", TEXT), ("/tokenize", CHAT)]))
    body = {**base, "max_tokens": 4, "stream": draw(st.booleans())}
    used = st.sampled_from(USED)
    for name in draw(st.lists(used | used | st.sampled_from(FIELDS), min_size=1, max_size=3)):
        usual = fitting.get(name, numbers | st.booleans())
        body[name] = draw(usual | usual | values)
    return path, json.dumps(body).encode()[:LARGEST]


deep = st.builds(
    lambda opening, depth, field: b'{"model": "tiny", "%b": ' % field.encode() + opening * depth,
    st.sampled_from([b"[", b'{"a":', b'[{"a":']),
    st.sampled_from([50, 999, 9000]),
    st.sampled_from(["messages", "prompt", "chat_template_kwargs", "tools", "logit_bias", "anything"]),
)
raw = st.one_of(
    st.binary(max_size=300),
    deep,
    st.builds(lambda size, start: random.Random(start).randbytes(size), st.just(LARGEST), st.integers(0, 9)),
    st.builds(lambda body: gzip.compress(json.dumps(body).encode()), values),
    st.builds(lambda digits: b'{"prompt": "x", "max_tokens": ' + b"9" * digits + b"}", st.sampled_from([20, 5000])),
)
PATHS = [
    CHATS,
    TEXTS,
    "/tokenize",
    "/detokenize",
    "/v1/models",
    "/health",
    "/ready",
    "/metrics",
    "/version",
    "/",
    "/v1",
]


@dataclass(frozen=True)
class Attack:
    method: str
    path: str
    body: bytes
    encoding: str | None = None
    sent: int | None = None
    """Bytes of it after which the client leaves; None: it stays."""
    read: int = -1
    """Bytes of the answer after which it leaves; -1: it reads all."""

    @property
    def bytes(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {len(self.body)}\r\n"
        if self.encoding:
            head += f"content-encoding: {self.encoding}\r\n"
        return head.encode() + b"\r\n" + self.body


leaving = st.one_of(st.none(), st.integers(0, 400))
attacks = st.one_of(
    st.builds(
        lambda request, sent, read: Attack("POST", *request, sent=sent, read=read),
        mutated(),
        st.one_of(st.none(), st.none(), leaving),
        st.sampled_from([-1, -1, -1, 1, 200]),
    ),
    st.builds(
        Attack,
        st.sampled_from(["POST", "POST", "GET", "HEAD", "PUT", "OPTIONS"]),
        st.sampled_from(PATHS),
        raw,
        st.sampled_from([None, None, "gzip", "zstd", "br"]),
        leaving,
    ),
    st.builds(
        lambda tokens, sent: Attack("POST", "/detokenize", json.dumps({"tokens": tokens}).encode(), sent=sent),
        prompts,
        leaving,
    ),
)


@seed(int(os.environ.get("FUZZ_SEED", "0")))
@settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    # The server is the same for all: what one has left behind fails every other, and no smaller one explains it.
    phases=[Phase.explicit, Phase.generate],
)
@given(attack=attacks)
@example(attack=Attack("POST", CHATS, json.dumps({**CHAT, "n": 8, "max_tokens": 200, "stream": True}).encode(), read=9))
@example(attack=Attack("POST", TEXTS, json.dumps({**TEXT, "prompt": ["x"] * 64, "max_tokens": 99}).encode(), sent=700))
def test_no_body_fails_the_server_or_stops_it_or_leaves_anything_behind(watched: Watched, attack: Attack) -> None:
    async def run() -> bytes:
        watched.begin()
        async with asyncio.timeout(HANG):
            answer = await watched.ask(attack.bytes, sent=attack.sent, read=attack.read)
        assert await watched.renders_as_before()
        await watched.come_to_rest()
        return answer

    check(watched, watched.run(run()))


EDGES: list[Any] = [
    *(None, True, -1, 0, 1, 2, 2**31, 2**63, -(2**63) - 1, 10**400, 1.5, 1e308, math.nan, -math.inf),
    *("", "a", "<|im_end|>", [], {}, [[]], [""], ["a"], [None], [{}], {"a": []}, {"": {"a": [1]}}),
    *([token] for token in (-1, 0, VOCABULARY - 1, VOCABULARY, 2**31)),
    *({str(token): 1} for token in (-1, 0, VOCABULARY - 1, VOCABULARY, 2**31)),
    *map(filled, (0, "x", [0], {}, {"role": "user", "content": "a"})),
    [{"role": "user", "content": filled({"type": "text", "text": "a"})}],
    [{"role": "assistant", "tool_calls": filled({"id": "1", "function": {"name": "f", "arguments": "{}"}})}],
]
BASES = [(CHATS, CHAT), (TEXTS, TEXT), ("/tokenize", CHAT)]


@pytest.mark.parametrize("name", USED)
def test_each_field_takes_or_refuses_whatever_it_is_given(watched: Watched, name: str) -> None:
    """Where the odds of the test above are small: a limit is off by one for one field and one number."""
    attacks = [
        Attack("POST", path, json.dumps({**base, "max_tokens": 2, "stream": True, name: value}).encode())
        for path, base in BASES
        for value in EDGES
    ]

    async def run() -> list[bytes]:
        watched.begin()
        async with asyncio.timeout(HANG):
            answers = [await watched.ask(attack.bytes) for attack in attacks]
        await watched.come_to_rest()
        return answers

    for answer in watched.run(run()):
        check(watched, answer)
        assert answer, "no answer"


def check(watched: Watched, answer: bytes) -> None:
    head = answer.partition(b"\r\n")[0]
    assert not head.startswith(b"HTTP/1.1 500"), answer[-600:]
    assert b'"server_error"' not in answer or head.startswith(b"HTTP/1.1 503"), answer[-600:]
    assert watched.longest < LONGEST_PAUSE, f"nobody else was served for {watched.longest:.2f} s of work"
    assert watched.server._engine.failure is None
