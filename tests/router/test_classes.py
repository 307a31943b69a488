"""The class of a request: what its body asks for, and what conversations of its application begin with."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.prefix import ENDS
from headwater_router.gateway.body import read_body
from headwater_router.picker.base import Prompt
from headwater_router.picker.classes import Applications, Kind, Traits, traits


def of(**body: Any) -> Traits:
    return traits(read_body(json.dumps({"model": "m", **body}).encode()))


SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": SCHEMA},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "structural_tag"}},
        {"text": {"format": {"type": "json_schema", "schema": {}}}},
        {"structured_outputs": {"regex": "a+"}},
        {"guided_json": {"type": "object"}},
        {"guided_regex": "a"},
        {"guided_choice": ["a"]},
        {"guided_grammar": "root"},
        {"json_schema": "{}"},
        {"regex": "a"},
        {"ebnf": "root"},
    ],
    ids=json.dumps,
)
def test_an_answer_that_is_to_follow_something_is_structured(body: dict[str, Any]) -> None:
    assert of(**body).structured


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"text": {"verbosity": "low"}},
        {"text": {"format": {"type": "text"}}},
        {"guided_json": None},
        {"messages": [{"role": "user", "content": '{"regex":"a"}'}]},
    ],
    ids=json.dumps,
)
def test_one_that_is_free_is_not(body: dict[str, Any]) -> None:
    assert not of(**body).structured


def message(role: str, content: Any = "x" * 100) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_a_conversation_begins_until_the_model_has_said_something() -> None:
    first = [message("system"), message("user")]
    assert of(messages=first).begins
    assert of(messages=[*first, message("user")]).begins
    assert of(messages=[message("assistant"), *first]).begins
    assert of(messages=[message("user", '"role":"assistant"')]).begins
    assert of(prompt="x" * 1000).begins
    assert of(input="x" * 1000).begins
    assert not of(input=[*first, message("assistant")]).begins
    later = of(messages=[*first, message("assistant"), message("user")])
    assert not later.begins
    assert later.opening == pytest.approx(0.5, abs=0.05)


texts = st.text(st.sampled_from('ab"\\{}[]:,é\n'), max_size=30)


@given(st.lists(st.builds(message, st.sampled_from(["system", "user", "assistant", "tool"]), texts)))
def test_what_opens_is_a_part_of_the_prompt(messages: list[Any]) -> None:
    told = of(messages=messages)
    roles = [each["role"] for each in messages]
    asked = roles.index("user") if "user" in roles else len(roles)
    assert 0 < told.opening <= 1
    assert told.begins is not any(role in ("assistant", "tool") for role in roles[asked:])


# Applications

FIRST = Traits()


def prompt(beginning: int, tokens: int) -> Prompt:
    """Of 128 tokens a block."""
    return Prompt("m", [beginning, *range(tokens // 128)], tokens)


def blocks(tokens: int) -> int:
    return max(depth for depth, end in enumerate(ENDS) if end * 128 <= tokens)


def asked(known: Applications, beginning: int, tokens: int, held: int, told: Traits = FIRST) -> Kind:
    return known.kind(prompt(beginning, tokens), told, blocks(held))


def test_an_application_whose_prompts_begin_alike_is_shared_after_a_few() -> None:
    known = Applications()
    assert asked(known, 1, 4200, 0) is Kind.PLAIN
    assert [asked(known, 1, 4200, 4000) for _ in range(4)][-1] is Kind.SHARED


def test_a_conversation_is_of_one_class_however_much_of_it_is_cached_later() -> None:
    known = Applications()
    assert asked(known, 1, 600, 0) is Kind.PLAIN
    for turn in range(2, 12):
        assert asked(known, 1, 600 * turn, 600 * (turn - 1), Traits(opening=1 / turn)) is Kind.PLAIN
    # For a router that has not seen how it began, too.
    assert asked(Applications(), 1, 6000, 5400, Traits(opening=0.1)) is Kind.PLAIN


def test_later_turns_are_of_their_applications_class() -> None:
    known = Applications()
    for _ in range(6):
        asked(known, 1, 4200, 4000)
    assert asked(known, 1, 9000, 0, Traits(opening=0.5)) is Kind.SHARED


@pytest.mark.parametrize(("tokens", "held"), [(4000, 1500), (300, 200)], ids=["less than half", "too few"])
def test_what_shares_little_is_plain(tokens: int, held: int) -> None:
    known = Applications()
    assert {asked(known, 1, tokens, held) for _ in range(20)} == {Kind.PLAIN}


def test_a_long_beginning_is_long_and_a_long_conversation_is_not() -> None:
    known = Applications()
    assert asked(known, 1, 9000, 0) is Kind.LONG
    assert asked(known, 1, 9600, 9000, Traits(opening=9000 / 9600)) is Kind.LONG
    assert asked(known, 2, 30_000, 0, Traits(opening=0.05)) is Kind.PLAIN


def test_what_is_structured_is_that_first() -> None:
    known = Applications()
    for _ in range(6):
        asked(known, 1, 9000, 8000)
    assert asked(known, 1, 9000, 8000, Traits(structured=True)) is Kind.STRUCTURED


def test_a_class_is_let_go_later_than_it_is_found() -> None:
    known = Applications()
    for _ in range(30):
        kind = asked(known, 1, 4000, 2600)
    assert kind is Kind.SHARED
    assert {asked(known, 1, 4000, 1800) for _ in range(30)} == {Kind.SHARED}
    assert [asked(known, 1, 4000, 1000) for _ in range(30)][-1] is Kind.PLAIN


def test_applications_are_bounded() -> None:
    known = Applications()
    for beginning in range(5000):
        asked(known, beginning, 1000, 0)
    assert len(known._known) <= 4096
