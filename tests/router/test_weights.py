"""Several deployments of one name: each gets its share, and a conversation stays where it is."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.index import PromptBuilder
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


def key_of(body: dict[str, Any], path: str = "/v1/chat/completions", session: str | None = None) -> int | None:
    headers = [(b"x-session-id", session.encode())] if session else []
    return conversation(body, PromptBuilder().build(path, body, headers, model="m"))


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


@pytest.mark.parametrize(
    "body", [{}, {"messages": None}, {"messages": 7}, {"messages": []}, {"messages": [None]}, {"input": ""}]
)
def test_a_body_that_makes_no_sense_does_no_harm(body: dict[str, Any]) -> None:
    key_of(body)
