"""No body costs more than its bytes are worth. Work is counted, in hashes and in memory, not timed."""

import base64
import random
import sys
import tracemalloc
from typing import Any

import pytest

from headwater import prefix
from headwater.openai.errors import APIError
from headwater.prefix import MAX_BLOCKS, MAX_TOKENS
from headwater_router.gateway.body import asking_for_usage, read_body, with_model
from headwater_router.index import PromptBuilder
from headwater_router.index.prompt import MAX_EXACT_BYTES
from headwater_router.index.stored import KEY_TOKENS
from headwater_router.picker.base import Prompt
from headwater_router.picker.weights import conversation

MIB = 1 << 20
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

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
    conversation(body, prompt)
    return prompt


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
    builder = PromptBuilder(tokenizers={"m": NoTokenizer()})
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
    builder = PromptBuilder(tokenizers={"m": NoTokenizer()})
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
    data = data.replace(b"{", b'{"stream":true,"stream_options":null,', 1)
    try:
        body = read_body(data)
    except APIError:
        return
    tracemalloc.start()
    try:
        asking_for_usage(data, body)
        with_model(data, body, "another")
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
