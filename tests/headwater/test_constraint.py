"""Whichever field asks for a form of the answer, it becomes one constraint, or a sentence that names the field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.constraint import MOST_BYTES, Constraint, Kind, form_of
from headwater.openai.errors import BadRequestError

SCHEMA = {"type": "object", "properties": {"ä": {"type": "integer"}}}
WRITTEN = '{"type":"object","properties":{"ä":{"type":"integer"}}}'
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
OF_SCHEMA = Constraint(Kind.JSON_SCHEMA, WRITTEN)
ANY_OBJECT = Constraint(Kind.JSON_SCHEMA, '{"type":"object"}')


def form(**fields: Any) -> Constraint | None:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return form_of(ChatCompletionRequest.parse(json.dumps(body).encode()))


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, **fields}}


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "guided_json": None, "structured_outputs": None}, None),
        ({"structured_outputs": {"json": None, "json_object": False}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"response_format": json_schema()}, OF_SCHEMA),
        ({"response_format": json_schema(strict=True)}, OF_SCHEMA),
        ({"response_format": json_schema(strict=False)}, Constraint(Kind.JSON_SCHEMA, WRITTEN, lenient=True)),
        ({"structured_outputs": {"json": SCHEMA}}, OF_SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, OF_SCHEMA),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
        ({"structured_outputs": {"regex": "a+"}}, Constraint(Kind.REGEX, "a+")),
        ({"structured_outputs": {"choice": ["a", "ö"]}}, Constraint(Kind.CHOICE, '["a","ö"]')),
        ({"structured_outputs": {"grammar": "start: A"}}, Constraint(Kind.GRAMMAR, "start: A")),
        ({"guided_json": SCHEMA}, OF_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, OF_SCHEMA),
        ({"guided_json": True}, Constraint(Kind.JSON_SCHEMA, "{}")),
        ({"guided_regex": "a+"}, Constraint(Kind.REGEX, "a+")),
        ({"guided_choice": ["a"]}, Constraint(Kind.CHOICE, '["a"]')),
        ({"guided_grammar": 'root ::= "a"'}, Constraint(Kind.GRAMMAR, 'root ::= "a"')),
        ({"json_schema": json.dumps(SCHEMA)}, OF_SCHEMA),
        ({"json_schema": SCHEMA}, OF_SCHEMA),
        ({"regex": "a+"}, Constraint(Kind.REGEX, "a+")),
        ({"ebnf": 'root ::= "a"'}, Constraint(Kind.GRAMMAR, 'root ::= "a"')),
        ({"grammar": 'root ::= "a"'}, Constraint(Kind.GRAMMAR, 'root ::= "a"')),
    ],
)
def test_each_way_to_ask_becomes_one_constraint(fields: dict[str, Any], constraint: Constraint | None) -> None:
    assert form(**fields) == constraint


@pytest.mark.parametrize("draft", ["https://nowhere.example/schema", "nonsense", 5, None])
def test_a_schema_of_a_language_that_nobody_knows_is_read_as_any_other(draft: Any) -> None:
    assert form(guided_json={"$schema": draft, **SCHEMA}) == OF_SCHEMA
    known = {"$schema": "http://json-schema.org/draft-07/schema#", **SCHEMA}
    kept = form(guided_json=known)
    assert kept is not None and json.loads(kept.text) == known


def test_structural_tags_are_read_from_objects_and_from_text() -> None:
    for fields in (
        {"response_format": {"type": "structural_tag", **TAG}},
        {"structured_outputs": {"structural_tag": TAG}},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
    ):
        constraint = form(**fields)
        assert constraint is not None and constraint.kind is Kind.STRUCTURAL_TAG
        assert json.loads(constraint.text) == TAG


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be text, json_object, json_schema or"),
        ({"response_format": {}}, "response_format.type", "found null"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "with a `schema`"),
        ({"response_format": json_schema(schema="nothing")}, "response_format.json_schema.schema", "JSON schema"),
        ({"response_format": json_schema(schema=[1])}, "response_format.json_schema.schema", "JSON schema"),
        (
            {"response_format": json_schema(schema={}, name=5)},
            "response_format.json_schema.name",
            "must be text, found 5",
        ),
        (
            {"response_format": json_schema(schema={}, strict="yes")},
            "response_format.json_schema.strict",
            "true or false",
        ),
        ({"guided_json": False}, "guided_json", "of which some text is"),
        ({"structured_outputs": {"yaml": "a"}}, "structured_outputs.yaml", "allowed are json, regex, choice"),
        ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object", "is not supported"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "a list of texts"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice", "a list of texts"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "not empty"),
        ({"structured_outputs": {"structural_tag": {"format": {}}}}, "structured_outputs.structural_tag", "newer way"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "only one of them"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "regex", "only one of them"),
        ({"regex": "a", "min_tokens": 2}, "min_tokens", "cannot be kept"),
        ({"regex": "a", "allowed_token_ids": [2]}, "allowed_token_ids", "cannot be kept"),
        ({"regex": "a" * (MOST_BYTES + 1)}, "regex", f"allowed are {MOST_BYTES}"),
        ({"regex": 1}, "regex", "text"),
    ],
)
def test_what_is_no_form_is_refused_by_name(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(BadRequestError, match=words) as caught:
        form(**fields)
    assert caught.value.param == param


def test_a_schema_that_is_deep_is_refused_before_anything_walks_it() -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"items": deep}
    with pytest.raises(BadRequestError, match="more than 100 levels"):
        form(json_schema=json.dumps(deep))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda each: (
        st.lists(each, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "json", "schema", "json_schema", "strict", "x"]), each, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ("response_format", "structured_outputs", "guided_json", "guided_choice", "json_schema", "regex", "grammar")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=2))
def test_whatever_is_sent_is_a_constraint_or_a_sentence(fields: dict[str, Any]) -> None:
    try:
        constraint = form(**fields)
    except BadRequestError as error:
        assert error.param
    else:
        assert constraint is None or constraint.text
