"""Whatever token is chosen out of those that a grammar allows, the text that comes of it is of the form.

The tokenizer is the byte-level one of bare shapes, whose 256 first tokens are bytes; made-up words follow, which no
mask may let through.
"""

import json
import mmap
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.openai.constraint import MOST_BYTES, Constraint, Kind
from headwater_engine.grammar.compiler import Compiler
from headwater_engine.grammar.matcher import GrammarError, Matcher
from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS, byte_level_tokenizer
from tests.engine import chat_models

ROWS = 320
TEXT = byte_level_tokenizer(ROWS).backend_tokenizer
MOST = 600
"""Tokens of an answer."""


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(TEXT.to_str(), (BYTE_LEVEL_EOS,), ROWS)


def begin(compiler: Compiler, kind: Kind, text: str, *, lenient: bool = False) -> Matcher:
    return compiler.compile(Constraint(kind, text, lenient)).result(60).begin()


def allowed(matcher: Matcher) -> list[int]:
    matcher.ask()
    matcher.make()
    assert matcher.made
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def walked(matcher: Matcher, rng: random.Random) -> str | None:
    """An answer, token by token at random, which ends where it may end; None where it would not."""
    said: list[int] = []
    while not matcher.ended:
        tokens = allowed(matcher)
        assert tokens, "nothing may follow, and yet it has not ended"
        token = BYTE_LEVEL_EOS if BYTE_LEVEL_EOS in tokens else rng.choice(tokens)
        matcher.advance(token)
        if token != BYTE_LEVEL_EOS:
            said.append(token)
        if len(said) > MOST:
            return None
    return TEXT.decode(said, skip_special_tokens=False)


SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "minLength": 2, "maxLength": 4},
        {"type": "string", "pattern": "^[a-c]{2,5}$"},
        {"type": "string", "format": "date"},
        {"type": "integer"},
        {"type": "integer", "minimum": -3, "maximum": 40},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["red", 3, None, {"a": [1]}]},
        {"const": "fixed"},
    ]
)


def composed(each: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "name", "ö", "x y"])
    objects = st.dictionaries(names, each, max_size=3).flatmap(
        lambda properties: st.builds(
            lambda required, closed: {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                **({"additionalProperties": False} if closed else {}),
            },
            st.sets(st.sampled_from(sorted(properties))) if properties else st.just(set[str]()),
            st.booleans(),
        )
    )
    arrays = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        each,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    return objects | arrays | st.lists(each, min_size=1, max_size=3).map(lambda options: {"anyOf": options})


SCHEMAS = st.recursive(SCALARS, composed, max_leaves=6)


@settings(max_examples=500, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_a_finished_answer_is_valid_by_another_library(compiler: Compiler, schema: dict[str, Any], seed: int) -> None:
    text = walked(begin(compiler, Kind.JSON_SCHEMA, json.dumps(schema)), random.Random(seed))
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


@pytest.fixture(scope="module", params=["smollm2", "qwen3"])
def real(request: pytest.FixtureRequest) -> Iterator[tuple[Compiler, int, int]]:
    """Of a model's own tokenizer; its end of answers, and how many tokens it has."""
    tokenizer = chat_models.tokenizer(request.param)
    end, rows = tokenizer.eos_token_id, len(tokenizer)
    compiler = Compiler(tokenizer.backend_tokenizer.to_str(), (end,), rows)
    yield compiler, end, rows
    compiler.close()


@settings(max_examples=60, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_what_is_forced_is_all_that_masks_allow_token_by_token(
    real: tuple[Compiler, int, int], schema: dict[str, Any], seed: int
) -> None:
    """So an answer is the same whether its forced tokens are drawn or not, whatever is drawn beside them."""
    compiler, end, _ = real
    rng, matcher = random.Random(seed), begin(compiler, Kind.JSON_SCHEMA, json.dumps(schema))
    ahead: list[int] = []
    for _ in range(60):
        if matcher.ended:
            break
        ahead = ahead or matcher.forced()
        tokens = allowed(matcher)
        if ahead:
            assert tokens == [ahead.pop(0)], "the mask allows no other"
        matcher.advance(end if end in tokens else rng.choice(tokens))


def test_a_mask_is_that_of_now_where_a_token_was_allowed_and_has_not_come(real: tuple[Compiler, int, int]) -> None:
    """The step failed behind it, and is tried again with a mask."""
    compiler, _, _ = real
    matcher = begin(compiler, Kind.JSON_SCHEMA, json.dumps({"type": "object", "required": ["a", "b"]}))
    for _ in range(6):
        tokens = allowed(matcher)
        assert matcher.allows(tokens[-1])
        assert allowed(matcher) == tokens
        matcher.advance(tokens[0])


@settings(max_examples=40, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_a_token_is_allowed_where_the_mask_says_so(
    real: tuple[Compiler, int, int], schema: dict[str, Any], seed: int
) -> None:
    """Also before there is a mask, and those that may come only now and then: ends of an answer, marks, odd bytes."""
    compiler, end, rows = real
    rng, matcher = random.Random(seed), begin(compiler, Kind.JSON_SCHEMA, json.dumps(schema))
    for _ in range(15):
        if matcher.ended:
            break
        some = {end, *range(100), *range(rows - 100, rows), *(rng.randrange(rows) for _ in range(100))}
        before = {token for token in some if matcher.allows(token)}
        assert not matcher.allows(-1), "nothing is taken any more"
        tokens = allowed(matcher)
        assert before == some.intersection(tokens)
        assert all(matcher.allows(token) for token in tokens[:: max(1, len(tokens) // 100)])
        assert not matcher.allows(-1)
        matcher.advance(end if end in tokens else rng.choice(tokens))


def test_masks_are_wanted_ahead_where_tokens_were_refused_one_after_the_other(compiler: Compiler) -> None:
    matcher = begin(compiler, Kind.REGEX, "a*")
    letters = [TEXT.token_to_id(letter) for letter in "ab"]
    wanted = []
    for token in [1, 1, 1, 0, 1, 0]:
        while matcher.doubted:
            wanted.append("m")
            matcher.advance(letters[0])
        wanted.append(".")
        if not matcher.allows(letters[token]):
            matcher.advance(letters[0])
        else:
            matcher.advance(letters[token])
    assert "".join(wanted) == "m..m.mmm..."


def test_a_long_name_is_forced(real: tuple[Compiler, int, int]) -> None:
    compiler, _, _ = real
    matcher = begin(compiler, Kind.REGEX, "[ab](a_very_long_name_of_a_member_that_has_no_other){2}")
    assert matcher.forced() == []
    matcher.advance(allowed(matcher)[0])
    assert len(matcher.forced()) > 10


def test_a_token_that_the_model_has_no_row_for_is_not_forced() -> None:
    letters = [TEXT.token_to_id(letter) for letter in "abz"]
    assert letters == sorted(letters)
    compiler = Compiler(TEXT.to_str(), (BYTE_LEVEL_EOS,), letters[-1])
    assert begin(compiler, Kind.REGEX, "abz").forced() == letters[:2]


def test_answers_do_finish(compiler: Compiler) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    texts = [walked(begin(compiler, Kind.JSON_SCHEMA, schema), random.Random(seed)) for seed in range(20)]
    assert sum(text is not None for text in texts) > 10


@pytest.mark.parametrize(
    ("kind", "text", "form"),
    [
        (Kind.REGEX, "[0-9]{3}-[0-9]{4}", "[0-9]{3}-[0-9]{4}"),
        (Kind.REGEX, "(a|ö)+x", "(a|ö)+x"),
        (Kind.CHOICE, '["red","dark \\"blue\\"","ö"]', 'red|dark "blue"|ö'),
        (Kind.GRAMMAR, 'start: ("a" | "b") NUMBER\nNUMBER: /[0-9]+/', "[ab][0-9]+"),
        (Kind.GRAMMAR, 'root ::= "yes" | "no" [!?]', "yes|no[!?]"),
    ],
)
def test_other_forms(compiler: Compiler, kind: Kind, text: str, form: str) -> None:
    for seed in range(10):
        answer = walked(begin(compiler, kind, text), random.Random(seed))
        assert answer is not None and re.fullmatch(form, answer), answer


@settings(max_examples=60, deadline=None)
@given(
    choices=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_a_choice_is_taken_to_the_letter(compiler: Compiler, choices: list[str], seed: int) -> None:
    assert walked(begin(compiler, Kind.CHOICE, json.dumps(choices)), random.Random(seed)) in choices


def test_a_structural_tag_leaves_text_free_and_holds_what_is_within(compiler: Compiler) -> None:
    structures = [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}]
    tag = {"structures": structures, "triggers": ["<f"]}
    matcher = begin(compiler, Kind.STRUCTURAL_TAG, json.dumps(tag))
    for token in TEXT.encode("any text <f>1", add_special_tokens=False).ids:
        assert token in allowed(matcher)
        matcher.advance(token)
    assert BYTE_LEVEL_EOS not in allowed(matcher)
    assert TEXT.token_to_id("x") not in allowed(matcher)


def test_spaces_come_to_an_end(compiler: Compiler) -> None:
    (space,) = TEXT.encode(" ", add_special_tokens=False).ids
    matcher = begin(compiler, Kind.JSON_SCHEMA, '{"type":"object"}')
    matcher.advance(TEXT.token_to_id("{"))
    for _ in range(32):
        assert space in allowed(matcher)
        matcher.advance(space)
    assert space not in allowed(matcher)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (Kind.JSON_SCHEMA, '{"not":{"type":"string"}}', "not"),
        (Kind.JSON_SCHEMA, '{"type":"nonsense"}', "nonsense"),
        (Kind.JSON_SCHEMA, '{"$ref":"#/nowhere"}', "nowhere"),
        (
            Kind.JSON_SCHEMA,
            '{"$ref":"http://example.com/schema"}',
            "^`http://example.com/schema` is not part of the schema$",
        ),
        (Kind.JSON_SCHEMA, '{"multipleOf":-1}', "must be greater than 0, found -1"),
        (Kind.JSON_SCHEMA, '{"multipleOf":1e300}', "^Value for 'multipleOf' has too many digits$"),
        (Kind.GRAMMAR, 'start: %json {"$ref": "#/nowhere"}', "^Pointer '/nowhere' does not exist$"),
        (Kind.GRAMMAR, "start: <|nope|>", "unknown special token"),
        (Kind.JSON_SCHEMA, '{"type":"string","enum":[1]}', "."),
        (Kind.JSON_SCHEMA, '{"const":12345678901234567890}', "12345678901234567890 is beyond"),
        (Kind.JSON_SCHEMA, '{"items":{"anyOf":[{"enum":["a",-9007199254740993]}]}}', "-9007199254740993 is beyond"),
        (Kind.JSON_SCHEMA, '{"$ref":"#"}', "^no text is of this form$"),
        (Kind.GRAMMAR, "start: start", "^no text is of this form$"),
        (Kind.REGEX, "(open", "unclosed"),
        (Kind.REGEX, r"(a)\1", "backreferences"),
        (Kind.GRAMMAR, "no grammar at all", "."),
        (Kind.STRUCTURAL_TAG, '{"structures":[],"triggers":[]}', "not empty"),
        (Kind.STRUCTURAL_TAG, '{"structures":[{"begin":"<f>","schema":{},"end":""}],"triggers":["x"]}', "no trigger"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(
    compiler: Compiler, kind: Kind, text: str, words: str
) -> None:
    with pytest.raises(GrammarError, match=words):
        begin(compiler, kind, text)


def test_what_cannot_be_enforced_may_be_passed_over(compiler: Compiler) -> None:
    text = '{"type":"array","uniqueItems":true,"items":{"const":1},"maxItems":2}'
    with pytest.raises(GrammarError, match="uniqueItems"):
        begin(compiler, Kind.JSON_SCHEMA, text)
    answer = walked(begin(compiler, Kind.JSON_SCHEMA, text, lenient=True), random.Random(0))
    assert answer is not None and json.loads(answer) in ([], [1], [1, 1])


HOSTILE: dict[str, tuple[Kind, str]] = {
    "repetition within repetition": (Kind.REGEX, "((a{1,1000}){1,1000}){1,1000}"),
    "ambiguous": (Kind.REGEX, "(a*)*(a|aa)*b"),
    "many states": (Kind.REGEX, "(.*a.{50}){10}"),
    "names": (Kind.JSON_SCHEMA, json.dumps({"type": "object", "properties": {f"p{n}": True for n in range(3000)}})),
    "choices": (Kind.JSON_SCHEMA, json.dumps({"enum": [f"{n}" for n in range(8000)]})),
    "choices of one text": (Kind.CHOICE, json.dumps([f"the same {n}" for n in range(3000)])),
    "one long choice": (Kind.CHOICE, json.dumps(["x" * 60_000])),
    "long": (Kind.JSON_SCHEMA, '{"type":"string","minLength":1,"maxLength":1000000}'),
    "patterns": (Kind.JSON_SCHEMA, json.dumps({"anyOf": [{"pattern": f"^(a|b{n})*c{{1,99}}$"} for n in range(800)]})),
    "deep grammar": (Kind.GRAMMAR, "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "endless rule": (Kind.GRAMMAR, "start: start"),
    "doubling": (Kind.GRAMMAR, "\n".join(["start: r0", *(f"r{n}: r{n + 1} r{n + 1}" for n in range(60)), 'r60: "a"'])),
    "alternatives": (Kind.GRAMMAR, 'start: s\ns: s s s | s s | "a" | "b" |'),
}


MOST_SECONDS = 10.0
"""Of CPU, for a hostile form and 60 tokens: 1.2 were seen with SmolLM2's vocabulary."""
MOST_MIB = 150
"""Of memory: 35 were seen. Each state of a lexer has 1 to 2 KB, and there may be 25,000."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_costs_what_its_bytes_are_worth(real: tuple[Compiler, int, int], name: str) -> None:
    """Or is refused, after as much."""
    compiler, end, _ = real
    kind, text = HOSTILE[name]
    assert len(text) <= MOST_BYTES
    rng, seconds, resident = random.Random(name), time.process_time(), rss()
    matcher = None
    try:
        matcher = begin(compiler, kind, text)
        for _ in range(60):
            tokens = [token for token in allowed(matcher) if token != end]
            if matcher.ended or not tokens:
                break
            matcher.advance(rng.choice(tokens))
    except GrammarError as error:
        assert str(error)
    assert time.process_time() - seconds < MOST_SECONDS
    assert rss() - resident < MOST_MIB << 20
    assert matcher is None or matcher.following < 0.2, "the loop does this, and everybody waits"


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_an_answer_that_takes_long_to_follow_is_ended(compiler: Compiler) -> None:
    """A mask is made beside the loop, but what is drawn is told by the loop itself."""
    matcher = begin(compiler, Kind.GRAMMAR, 'start: s\ns: s s s | s s | "a" | "b" |')
    (letter,) = TEXT.encode("a", add_special_tokens=False).ids
    with pytest.raises(GrammarError, match="too long to follow"):
        for _ in range(MOST):
            allowed(matcher)
            matcher.advance(letter)
    assert matcher.following < 0.5


def test_a_form_is_made_anew_after_an_answer_that_came_to_a_limit() -> None:
    """What is counted against the limit is shared by all answers of the form."""
    tokenizer = chat_models.tokenizer("smollm2")
    compiler = Compiler(tokenizer.backend_tokenizer.to_str(), (tokenizer.eos_token_id,), len(tokenizer))
    rng = random.Random(1)
    before, later = (begin(compiler, *HOSTILE["many states"]) for _ in range(2))
    with pytest.raises(GrammarError, match="too many states"):
        for _ in range(400):
            before.advance(rng.choice(allowed(before)))
    with pytest.raises(GrammarError, match="too many states"):
        allowed(later)
    assert allowed(begin(compiler, *HOSTILE["many states"]))
    compiler.close()


def test_those_who_ask_the_same_share_a_grammar_and_not_their_place_in_it(compiler: Compiler) -> None:
    constraint = Constraint(Kind.REGEX, "ab|cd")
    assert compiler.compile(constraint) is compiler.compile(Constraint(Kind.REGEX, "ab|cd"))
    one, other = (compiler.compile(constraint).result(60).begin() for _ in range(2))
    a, b, c = (TEXT.token_to_id(letter) for letter in "abc")
    one.advance(a)
    assert (allowed(one), allowed(other)) == ([b], [a, c])


def test_a_model_without_an_end_of_answers_has_no_forms() -> None:
    with pytest.raises(GrammarError, match="no token that ends an answer"):
        begin(Compiler(TEXT.to_str(), (), ROWS), Kind.REGEX, "a")


@pytest.mark.parametrize("rows", [200, 320, 1000])
def test_the_model_may_have_more_rows_than_tokens_and_fewer(rows: int) -> None:
    compiler = Compiler(TEXT.to_str(), (BYTE_LEVEL_EOS,), rows)
    assert allowed(begin(compiler, Kind.REGEX, "[a-c]")) == [TEXT.token_to_id(letter) for letter in "abc"]
