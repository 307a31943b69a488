"""Several deployments of one name: each gets its share, and a conversation stays where it is."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.gateway.body import read_body
from headwater_router.index import PromptBuilder
from headwater_router.picker import weights
from headwater_router.picker.weights import choose, conversation

KEYS = range(2000)


def shares(weights: dict[str, int], keys: Any = KEYS) -> Counter[str]:
    rng = random.Random(0)
    return Counter(choose([*weights.items()], key, rng) for key in keys)


@pytest.mark.parametrize("keys", [KEYS, [None] * len(KEYS)], ids=["conversations", "by die"])
def test_each_gets_the_share_that_its_weight_says(keys: Any) -> None:
    found = shares({"a": 80, "b": 15, "c": 5}, keys)
    assert found["a"] == pytest.approx(1600, rel=0.1)
    assert found["b"] == pytest.approx(300, rel=0.2)
    assert found["c"] == pytest.approx(100, rel=0.3)


def test_weight_zero_gets_something_only_where_all_have_it() -> None:
    assert shares({"a": 0, "b": 1}) == {"b": len(KEYS)}
    assert shares({"a": 0, "b": 0})["a"] == pytest.approx(1000, rel=0.1)
    assert shares({"a": 0}) == {"a": len(KEYS)}


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 1000), min_size=1), st.integers(0, 2**64 - 1))
def test_the_order_in_which_they_are_named_does_not_matter(weights: dict[str, int], key: int) -> None:
    named, rng = [*weights.items()], random.Random(0)
    assert choose(named, key, rng) == choose(named[::-1], key, rng)


def test_only_the_conversations_of_one_that_leaves_move() -> None:
    rng = random.Random(0)
    before = [choose([("a", 2), ("b", 1), ("c", 1)], key, rng) for key in KEYS]
    after = [choose([("a", 2), ("c", 1)], key, rng) for key in KEYS]
    moved = {old for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {"b"}


def test_more_weight_takes_conversations_and_gives_none_away() -> None:
    rng = random.Random(0)
    before = [choose([("a", 1), ("b", 1)], key, rng) for key in KEYS]
    after = [choose([("a", 1), ("b", 3)], key, rng) for key in KEYS]
    assert all(new == "b" for old, new in zip(before, after, strict=True) if old != new)


# Conversations


def key_of(body: Any, path: str = "/v1/chat/completions", session: str | None = None) -> int | None:
    headers = [(b"x-session-id", session.encode())] if session else []
    read = read_body(body if isinstance(body, bytes) else json.dumps(body).encode())
    return conversation(read, PromptBuilder().build(path, read, headers, model="m"))


def chat(*turns: str, system: str = "You help.") -> dict[str, Any]:
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return {"model": "m", "messages": [{"role": "system", "content": system}, *messages]}


def test_a_conversation_keeps_its_key_as_it_grows() -> None:
    assert key_of(chat("Hello")) == key_of(chat("Hello", "Hi!", "And then?"))
    one = {"model": "m", "input": [{"role": "user", "content": "Hello"}]}
    more = {"model": "m", "input": [*one["input"], {"role": "assistant", "content": "Hi!"}]}
    assert key_of(one, "/v1/responses") == key_of(more, "/v1/responses")


def test_conversations_that_share_a_long_system_prompt_have_keys_of_their_own() -> None:
    assert len({key_of(chat(f"Question {number}", system="x" * 5000)) for number in range(20)}) == 20


def test_a_session_is_its_own_key() -> None:
    assert key_of(chat("Hello"), session="s") == key_of(chat("Bye"), session="s") != key_of(chat("Bye"))


def test_a_completion_is_known_by_its_beginning() -> None:
    begun = {"model": "m", "prompt": "x" * 600}
    longer = {"model": "m", "prompt": "x" * 600 + "y" * 600}
    assert key_of(begun, "/v1/completions") == key_of(longer, "/v1/completions") is not None
    assert key_of({"model": "m", "prompt": "short"}, "/v1/completions") is None


def test_the_order_of_a_messages_keys_does_not_matter() -> None:
    first = {"content": 'Hello, "you" {[', "name": "n", "role": "user"}
    one, more = {"messages": [first]}, {"messages": [first, {"content": "Hi!", "role": "assistant"}]}
    assert key_of(one) == key_of(more) != key_of({"messages": [{**first, "content": "Bye"}]})


def test_content_in_parts_is_part_of_the_key() -> None:
    def asking(*texts: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}

    one, more = {"messages": [asking("a", "b")]}, {"messages": [asking("a", "b"), asking("c")]}
    assert key_of(one) == key_of(more) != key_of({"messages": [asking("a", "c")]})


texts = st.text(st.sampled_from('ab"\\{}[]:,é\n'), max_size=30) | st.just('"role":"user"')
turn = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts})


@given(st.lists(turn, max_size=3), texts, st.lists(turn, max_size=3))
def test_every_conversation_keeps_its_key(before: list[Any], text: str, after: list[Any]) -> None:
    messages = [*before, {"role": "user", "content": text}]
    assert key_of({"messages": messages}) == key_of({"messages": messages + after}) is not None


@pytest.mark.parametrize(
    "first",
    [
        '"x"' + "x" * 300_000,
        '\\"' * 200_000,
        "é{[" * 200_000,
        "x " * 65_500,
        [[]] * 20_000,
        [1] * 200_000,
        [{}] * 20_000,
    ],
    ids=["text", "escapes", "brackets", "to the edge", "lists", "numbers", "objects"],
)
def test_a_first_message_of_any_length_is_a_key_after_few_looks(first: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []

    def counted(*place: Any) -> Iterator[re.Match[bytes]]:
        for token in find(*place):
            looks.append(token)
            yield token

    find = weights._tokens
    monkeypatch.setattr(weights, "_tokens", counted)
    message = {"role": "user", "content": first}
    one, more = {"messages": [message]}, {"messages": [message, {"role": "assistant", "content": "Hi!"}]}
    assert key_of(one) == key_of(more) is not None
    assert len(looks) <= 2 * weights._MAX_TOKENS


@pytest.mark.parametrize(
    "body",
    [
        {},
        b'{"messages":NaN}',
        {"messages": None},
        {"messages": 7},
        {"messages": []},
        {"messages": [None]},
        {"input": ""},
    ],
)
def test_a_body_that_makes_no_sense_does_no_harm(body: Any) -> None:
    key_of(body)
