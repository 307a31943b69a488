"""No body costs more than its bytes are worth. Work is counted, in bytes read, in hashes and in memory, not timed."""

import asyncio
import base64
import json
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater import prefix
from headwater.openai.errors import APIError, BadRequestError
from headwater.prefix import MAX_BLOCKS, MAX_TOKENS
from headwater_router.gateway import body as body_module
from headwater_router.gateway import form_body
from headwater_router.gateway.body import asking_for_usage, completed, read_body, with_model
from headwater_router.gateway.form_body import read_form
from headwater_router.index import PromptBuilder
from headwater_router.index import prompt as prompt_module
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.prompt import MAX_EXACT_BYTES
from headwater_router.index.tokenizers import Tokenizers
from headwater_router.picker.base import Prompt
from headwater_router.picker.weights import conversation
from tests.router.gateway import CHAT, error_of, gateway
from tests.router.upstream import Exchange, upstream

MIB = 1 << 20
COMPLETIONS, RESPONSES = "/v1/completions", "/v1/responses"

IMAGE = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}' % base64.b64encode(
    random.Random(0).randbytes(4000)
)


def of(head: bytes, piece: bytes, tail: bytes, size: int = 4 * MIB) -> bytes:
    return head + b",".join([piece] * (size // (len(piece) + 1))) + tail


HOSTILE = {
    "lists in a message": (CHAT, of(b'{"model":"m","messages":[{"role":"user","content":[', b"[]", b"]}]}")),
    "lists of lists": (CHAT, of(b'{"model":"m","messages":[', b"[[[[[]]]]]", b"]}")),
    "empty messages": (CHAT, of(b'{"model":"m","messages":[', b"{}", b"]}")),
    "tiny messages": (CHAT, of(b'{"model":"m","messages":[', b'{"role":"user","content":""}', b"]}")),
    "tools": (CHAT, of(b'{"model":"m","messages":[],"tools":[', b"{}", b"]}")),
    "images": (CHAT, of(b'{"model":"m","messages":[{"role":"user","content":[', IMAGE, b"]}]}")),
    "text": (CHAT, of(b'{"model":"m","messages":[{"role":"user","content":"', b"so it is", b'"}]}')),
    "items": (RESPONSES, of(b'{"model":"m","input":[', b"{}", b"]}")),
    "prompts": (COMPLETIONS, of(b'{"model":"m","prompt":[', b'""', b"]}")),
    "token ids": (COMPLETIONS, of(b'{"model":"m","prompt":[', b"151643", b"]}")),
    "short token ids": (COMPLETIONS, of(b'{"model":"m","prompt":[', b"1", b"]}")),
    "lists of token ids": (COMPLETIONS, of(b'{"model":"m","prompt":[', b"[1]", b"]}")),
    "unknown members": (CHAT, of(b'{"model":"m",', b'"a":{}', b"}")),
    "models": (CHAT, of(b"{", b'"model":"m"', b"}")),
    "a long salt": (CHAT, of(b'{"model":"m","messages":[],"cache_salt":"', b"salt", b'"}')),
    "a long model": (CHAT, of(b'{"model":"', b"m", b'"}')),
    "spaces": (CHAT, b'{"model":"m","messages":[' + b" " * 4 * MIB + b"]}"),
    "deep lists": (CHAT, of(b'{"model":"m","messages":[', b"[" * 900 + b"]" * 900, b"]}")),
    "deep objects": (CHAT, of(b'{"model":"m","messages":[', b'{"":' * 450 + b"1" + b"}" * 450, b"]}")),
    "members of no name": (CHAT, of(b'{"model":"m",', b'"":1', b"}")),
    "NaN": (CHAT, of(b'{"model":"m","messages":[', b"NaN", b"]}")),
    "a surrogate": (CHAT, of(b'{"model":"m","messages":[', b'"\\ud800"', b"]}")),
}
hostile = pytest.mark.parametrize(("path", "data"), HOSTILE.values(), ids=HOSTILE)


def routed(path: str, data: bytes, builder: PromptBuilder) -> Prompt | None:
    """All that is done with a body until an endpoint is picked. None: it is refused."""
    try:
        body = read_body(data)
    except APIError:
        return None
    prompt = builder.build(path, body, [], model="m")
    if (exact := builder.exact(prompt, path, body)) is not None:
        asyncio.run(exact)
    conversation(body, prompt)
    return prompt


class Reading:
    """Counts the bytes that are given to readers of JSON, and the marks among them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        self.marks = 0
        for module in (body_module, prompt_module):
            for name, decode in vars(module).copy().items():
                if isinstance(getattr(decode, "__self__", None), msgspec.json.Decoder):
                    monkeypatch.setattr(module, name, self._counted(decode))
        # Where values are read of it, it is by name.
        monkeypatch.setattr(prompt_module.msgspec.json, "decode", self._counted(msgspec.json.decode))

    def _counted(self, decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counted(data: Any) -> Any:
            given = bytes(data)
            self.bytes += len(given)
            self.marks += sum(map(given.count, (b"[", b"{", b":")))
            return decode(data)

        return counted


@hostile
@pytest.mark.parametrize("head", [b"", b'"stream":true,"stream_options":{"include_usage":false},"cache_salt":"x",'])
def test_a_body_is_read_once_whatever_is_written_into_it(
    path: str, data: bytes, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data.replace(b"{", b"{" + head, 1)
    reading = Reading(monkeypatch)
    try:
        body = read_body(data)
    except APIError:
        pass
    else:
        data = completed(data, body, model=None if body.model else "m", salt="of its key")
        asking_for_usage(with_model(data, body.outline(), "another"), body.outline())
        PromptBuilder().build(path, body, [], model="m")
    # What is no JSON by the book is read up to where that shows, and then as if it were.
    times = 2 if b"NaN" in data or b"\\ud8" in data else 1
    # Small ones of its values, and token ids, are read by themselves.
    assert reading.bytes <= times * len(data) + MAX_EXACT_BYTES + 40_000
    assert reading.marks <= times * (1 << 20) + 10_000


async def test_a_body_is_read_once_on_its_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-0123456789abcdef"
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps({"keys": [{"name": "one", "key": key, "cache_salt": "own"}]}))
    data = of(b'{"stream":true,"stream_options":null,"cache_salt":"x","messages":[', b'"so it is"', b"]}", 2 * MIB)

    async def answer(exchange: Exchange) -> None:
        await exchange.whole(
            b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n', headers=b"content-type: text/event-stream\r\n"
        )

    async with upstream() as engine, gateway(engine, api_keys=file, probe_interval=60) as router:
        engine.answer = answer
        reading = Reading(monkeypatch)
        assert (await router.post(data, CHAT, x_api_key=key)).status_code == 200
        assert len(data) <= reading.bytes <= len(data) + 1000
        sent = json.loads(engine.exchanges[0].body)
        assert (sent["model"], sent["stream_options"]) == ("m", {"include_usage": True})
        assert sent["cache_salt"] not in ("x", None)


@pytest.mark.parametrize("piece", [b"[", b"{", b'"":'])
def test_a_body_of_too_many_lists_objects_and_members_is_refused_before_it_is_read(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 1 << 20
    few = b'{"model":"m","prompt":"' + piece * (most - 100) + b'"}'
    assert read_body(few.replace(b'""', b"")).model == "m"
    reading = Reading(monkeypatch)
    with pytest.raises(BadRequestError, match="more than 1,048,576 opening brackets and braces, and colons"):
        read_body(b'{"model":"m","prompt":[' + piece * most)
    assert not reading.bytes


async def test_a_deep_body_is_refused_in_words() -> None:
    body = b'{"model":"m","x":%b}'
    async with upstream() as engine, gateway(engine) as router:
        for depth, rest in ((5000, b""), (5000, b"NaN")):
            answer = await router.post(body % (b"[" * depth + rest + b"]" * depth))
            assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")
            assert "nested too deep" in error_of(answer)["message"]
        assert not engine.exchanges


# Forms


class Looked(bytes):
    """Counts the bytes that are looked at."""

    looked = 0

    def find(self, sought: Any, start: Any = 0, end: Any = sys.maxsize) -> int:
        found = super().find(sought, start, end)
        stop = found + len(sought) if found >= 0 else min(end, len(self))
        Looked.looked += max(0, stop - start)
        return found

    def __getitem__(self, key: Any) -> Any:
        Looked.looked += len(range(*key.indices(len(self))))
        return super().__getitem__(key)


NAMED = b'Content-Disposition: form-data; name="%b"'
FORMS = {
    "parts": b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n' * 60_000,
    "names": b"--B\r\n" + NAMED % b"x" + b"\r\n\r\n" + b'name="model"\r\n\r\nm\r\n-' * 150_000 + b"--B--",
    "headers": b"--B\r\n" + b"x: y\r\n" * 600_000,
    "a long header": b"--B\r\n" + NAMED % (b"x" * 4 * MIB),
    "boundaries": b"--B\r\n" + NAMED % b"x" + b"\r\n\r\n" + b"\r\n--" * 1_000_000,
    "ends of lines": b"--B\r\n" + NAMED % b"x" + b"\r\n\r\n" + b"\r\n" * 2_000_000 + b"--B--",
    "large heads": (b"--B\r\n" + NAMED % b"x" + b"\r\nx: " + b" " * 3000 + b"\r\n\r\n\r\n") * 1300,
    "parameters": (b"--B\r\n" + NAMED % b"x" + b";a=b" * 900 + b"\r\n\r\n\r\n") * 1100,
    "a file": b"--B\r\n" + NAMED % b"x" + b"\r\n\r\n" + bytes(4 * MIB) + b"\r\n--B--\r\n",
}


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)
def test_a_form_is_looked_at_once_and_its_parts_are_few(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = 0

    def counted(head: bytes) -> bool:
        nonlocal heads
        heads += len(head)
        return names_model(head)

    names_model = form_body._names_model
    monkeypatch.setattr(form_body, "_names_model", counted)
    Looked.looked = 0
    tracemalloc.start()
    try:
        read_form([(b"content-type", b"multipart/form-data; boundary=B")], Looked(data))
    except BadRequestError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert Looked.looked <= len(data) + 128 * 3 * 4096
    assert heads <= 128 * 4096
    assert peak <= 1.1 * len(data) + 100_000


@hostile
def test_the_hashes_of_a_body_are_bounded(path: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = 0

    def counted(data: Any, seed: int = 0) -> int:
        nonlocal hashes
        hashes += 1
        return digest(data, seed)

    digest = prefix.xxh3_64_intdigest
    monkeypatch.setattr(prefix, "xxh3_64_intdigest", counted)
    prompt = routed(path, data, PromptBuilder())
    if prompt is not None:
        assert len(prompt.text_chain) <= MAX_BLOCKS
        assert len(prompt.token_chain or ()) <= MAX_TOKENS // KEY_TOKENS
        assert hashes <= MAX_BLOCKS + MAX_TOKENS // KEY_TOKENS + 32


@hostile
def test_a_body_takes_no_more_than_two_copies_of_it_while_it_is_read(path: str, data: bytes) -> None:
    builder = PromptBuilder(tokenizers=Tokenizers({"m": NoTokenizer()}))
    routed(path, data, builder)  # What is made once is made.
    tracemalloc.start()
    try:
        routed(path, data, builder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Beside it up to 32 bytes and a place in a list for each hash.
    assert peak < 2.1 * len(data) + 40 * MAX_BLOCKS + 100_000


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (CHAT, of(b'{"model":"m","messages":[', b"[]", b"]}", MAX_EXACT_BYTES - 100)),
        (COMPLETIONS, of(b'{"model":"m","prompt":[', b"1", b"]}", MAX_EXACT_BYTES - 100)),
        (CHAT, of(b'{"model":"m","messages":[', b'"",0', b"]}", MAX_EXACT_BYTES - 100)),
    ],
    ids=["lists", "token ids", "strings"],
)
def test_what_is_decoded_at_all_is_small(path: str, data: bytes) -> None:
    builder = PromptBuilder(tokenizers=Tokenizers({"m": NoTokenizer()}))
    routed(path, data, builder)
    tracemalloc.start()
    try:
        assert routed(path, data, builder) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * MIB


@hostile
def test_changing_a_body_takes_no_more_than_copies_of_it(path: str, data: bytes) -> None:
    data = data.replace(b"{", b'{"stream":true,"stream_options":null,"cache_salt":null,', 1)
    try:
        body = read_body(data)
    except APIError:
        return
    tracemalloc.start()
    try:
        asking_for_usage(data, body)
        completed(data, body, model="another", salt="another")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.1 * len(data) + 5 * MIB


@hostile
def test_a_prompt_holds_nothing_of_the_body(path: str, data: bytes) -> None:
    builder = PromptBuilder()
    held = sys.getrefcount(data)
    tracemalloc.start()
    try:
        prompts = [routed(path, data, builder) for _ in range(3)]
        assert sys.getrefcount(data) == held
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    chains = sum(len(prompt.text_chain) + len(prompt.token_chain or ()) for prompt in prompts if prompt is not None)
    assert left < 48 * chains + 100_000


def test_salts_and_models_that_clients_think_of_are_not_kept() -> None:
    builder = PromptBuilder()
    chat = b'{"model":"m","messages":[{"role":"user","content":"%b"}],"cache_salt":"%d%b"}'
    salts = [chat % (b"x " * 500, number, b"s" * MIB) for number in range(12)]
    routed(CHAT, salts[0], builder)
    tracemalloc.start()
    try:
        chains = {tuple(prompt.text_chain) for data in salts if (prompt := routed(CHAT, data, builder)) is not None}
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(chains) == 12
    assert left < 100_000


class NoTokenizer:
    def chat(self, body: object) -> list[int] | None:
        return None

    def completion(self, body: object) -> list[int] | None:
        return None
