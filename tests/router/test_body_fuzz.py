"""Whatever bytes a client sends: an error in words or a prompt, and the model that Python's json would read."""

import asyncio
import json
import string
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headwater.openai.errors import APIError
from headwater.prefix import MAX_BLOCKS, MAX_TOKENS
from headwater_router.gateway.body import Body, asking_for_usage, read_body, with_model
from headwater_router.index import PromptBuilder
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.tokenizers import Tokenizers
from headwater_router.picker.weights import conversation
from tests.router.test_index_tokenizer import WORDS

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/")
HEADERS = [(b"x-session-id", b"\xff"), (b"host", b"h")]

names = st.sampled_from(
    [*Body.__struct_fields__, "model", "stream", "role", "content", "type", "text", "data", "x", "é"]
)
scalars = st.one_of(
    st.sampled_from(["null", "true", "false", "0", "-1", "1e2", "151643", "4294967296", "NaN", "-Infinity", "1" * 30]),
    st.sampled_from(
        ['"m"', '""', '"user"', '"\\ud800"', '"\\ud83d\\ude00"', '"data:image/png;base64,%s"' % ("A/b+" * 900)]
    ),
    st.text(max_size=6).map(json.dumps),
    st.text(string.printable, max_size=700).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.integers(0, 2**32).map(str),
)


def escaped(name: str) -> st.SearchStrategy[str]:
    """The name as JSON, some of its characters as escapes."""
    ways = [st.sampled_from([json.dumps(char)[1:-1], f"\\u{ord(char):04x}"]) for char in name]
    return st.tuples(*ways).map(lambda parts: f'"{"".join(parts)}"')


def container(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    space = st.sampled_from(["", "", " ", "\n\t"])
    member = st.tuples(names.flatmap(escaped), space, inner).map(lambda parts: f"{parts[0]}:{parts[1]}{parts[2]}")
    lists = st.lists(inner, max_size=5).map(lambda values: f"[{','.join(values)}]")
    copies = st.tuples(inner, st.integers(1, 9000)).map(
        lambda each: f"[{','.join([each[0]] * (each[1] // len(each[0])))}]"
    )
    objects = st.tuples(space, st.lists(member, max_size=5)).map(lambda parts: f"{{{parts[0]}{', '.join(parts[1])}}}")
    return lists | copies | objects


values = st.recursive(scalars, container, max_leaves=12)
members = st.tuples(names.flatmap(escaped), st.sampled_from([":", " : "]), values).map("".join)
objects = st.tuples(st.sampled_from(["", "", " ", "\ufeff"]), st.lists(members, max_size=6)).map(
    lambda parts: f"{parts[0]}{{{','.join(parts[1])}}}".encode("utf-8", "surrogatepass")
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A body that lost, gained or changed a few bytes."""
    data = bytearray(draw(objects))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=2) | st.sampled_from([b'"', b"[" * 1200])
        )
    return bytes(data)


def by_python(data: bytes) -> Any:
    """What an engine in Python makes of it; None where it refuses it."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


class Words:
    """A tokenizer that takes whatever it is given."""

    def chat(self, body: Any) -> list[int] | None:
        return [len(WORDS)] * len(str(body))

    def completion(self, body: Any) -> list[int] | None:
        return None


def read(data: bytes) -> Body | None:
    try:
        return read_body(data)
    except APIError as error:
        json.dumps(error.body()).encode()
        return None


@given(objects | damaged() | st.binary(max_size=40))
def test_any_body_is_refused_in_words_or_becomes_a_prompt(data: bytes) -> None:
    body = read(data)
    if body is None:
        return
    builder = PromptBuilder(tokenizers=Tokenizers({"m": Words()}))
    for path in PATHS:
        for model in ("m", "other"):
            prompt = builder.build(path, body, HEADERS, model=model)
            if (exact := builder.exact(prompt, path, body)) is not None:
                asyncio.run(exact)
            assert len(prompt.text_chain) <= MAX_BLOCKS
            assert len(prompt.token_chain or ()) <= MAX_TOKENS // KEY_TOKENS
            assert prompt.tokens >= 1
            assert prompt.text_block_tokens > 0
            builder.learn(prompt, 7)
            prompt.session = None
            conversation(body, prompt)


@given(objects | damaged())
def test_the_model_and_the_stream_are_those_that_python_reads(data: bytes) -> None:
    body, parsed = read(data), by_python(data)
    if not isinstance(parsed, dict):
        return
    model = parsed.get("model")
    if isinstance(model, str) and 0 < len(model) <= 512 and model.isprintable() and data[:1] not in b"\xff\xfe\0":
        assert body is not None
    if body is not None:
        assert body.model == model
        assert body.stream == (parsed.get("stream") is True)


@given(objects | damaged())
def test_a_changed_body_differs_in_what_was_to_be_changed(data: bytes) -> None:
    body, before = read(data), by_python(data)
    if body is None or not isinstance(before, dict):
        return
    assert repr(by_python(with_model(data, body, "new"))) == repr(after(before, data, model="new"))
    asking = asking_for_usage(data, body)
    if asking is not None:
        options = (before.get("stream_options") or {}) | {"include_usage": True}
        assert repr(by_python(asking)) == repr(after(before, data, stream_options=options))
        assert (
            json.loads(asking, object_pairs_hook=lambda pairs: [name for name, _ in pairs]).count("stream_options") == 1
        )


def after(before: dict[str, Any], data: bytes, **changed: Any) -> dict[str, Any]:
    """With the change: in its place, or in front where the member was not there."""
    return {**changed, **before, **changed} if not before.keys() & changed else {**before, **changed}
