"""A form of the answer goes to each server in its own words, or it is said who cannot keep to it."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from headwater import backends
from headwater.backends.base import APIS
from headwater.backends.dialects import UnsupportedRequestError
from headwater.backends.dialects.forms import as_regex
from headwater.backends.dialects.vllm import OTHERS_WORDS
from headwater.openai.constraint import FIELDS, MOST_BYTES, Constraint, Kind
from headwater.openai.errors import BadRequestError
from headwater_router.gateway.body import read_body

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
EBNF = 'root ::= "a"'
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
OPENAI = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}

ASKED: dict[Kind, list[dict[str, Any]]] = {
    Kind.JSON_SCHEMA: [
        {"structured_outputs": {"json": SCHEMA}}, {"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)},
        {"json_schema": json.dumps(SCHEMA)}, {"guided_json": SCHEMA, "response_format": {"type": "text"}},
    ],
    Kind.REGEX: [{"structured_outputs": {"regex": "a+"}}, {"guided_regex": "a+"}, {"regex": "a+"}],
    Kind.CHOICE: [{"structured_outputs": {"choice": ["a.b", "c"]}}, {"guided_choice": ["a.b", "c"]}],
    Kind.GRAMMAR: [
        {"structured_outputs": {"grammar": EBNF}}, {"guided_grammar": EBNF}, {"ebnf": EBNF}, {"grammar": EBNF},
    ],
    Kind.STRUCTURAL_TAG: [{"structured_outputs": {"structural_tag": TAG}}],
}  # fmt: skip
WRITTEN: dict[str, dict[Kind, dict[str, Any]]] = {
    "vllm": {
        Kind.JSON_SCHEMA: {"structured_outputs": {"json": SCHEMA}},
        Kind.REGEX: {"structured_outputs": {"regex": "a+"}},
        Kind.CHOICE: {"structured_outputs": {"choice": ["a.b", "c"]}},
        Kind.GRAMMAR: {"structured_outputs": {"grammar": EBNF}},
        Kind.STRUCTURAL_TAG: {"structured_outputs": {"structural_tag": TAG}},
    },
    "sglang": {
        Kind.JSON_SCHEMA: {"response_format": OPENAI},
        Kind.REGEX: {"regex": "a+"},
        Kind.CHOICE: {"regex": r"(a\.b|c)"},
        Kind.GRAMMAR: {"ebnf": EBNF},
        Kind.STRUCTURAL_TAG: {"response_format": {"type": "structural_tag", **TAG}},
    },
    "tgi": {
        Kind.JSON_SCHEMA: {
            "response_format": {"type": "json_schema", "value": {"name": "answer", "schema": SCHEMA}}
        },
        Kind.REGEX: {"response_format": {"type": "regex", "value": "a+"}},
        Kind.CHOICE: {"response_format": {"type": "regex", "value": r"(a\.b|c)"}},
    },
    "tensorrt-llm": {
        Kind.JSON_SCHEMA: {"response_format": OPENAI},
        Kind.REGEX: {"response_format": {"type": "regex", "regex": "a+"}},
        Kind.CHOICE: {"response_format": {"type": "regex", "regex": r"(a\.b|c)"}},
        Kind.GRAMMAR: {"response_format": {"type": "ebnf", "ebnf": EBNF}},
    },
    "transformers": {},
}  # fmt: skip


def written(backend: str, path: str = CHAT, **members: Any) -> dict[str, Any]:
    dialect = backends.get(backend).dialect
    assert dialect is not None
    raws = {name: Raw(json.dumps(value).encode()) for name, value in members.items()}
    return {name: json.loads(bytes(raw)) for name, raw in dialect.request(path, raws).items()}


@pytest.mark.parametrize("backend", WRITTEN)
@pytest.mark.parametrize("kind", Kind)
def test_each_server_is_asked_in_its_own_words(backend: str, kind: Kind) -> None:
    for fields in ASKED[kind]:
        if kind in WRITTEN[backend]:
            expected = WRITTEN[backend][kind]
            if set(expected) == set(fields):
                expected = fields  # It came in the server's words, and stays as it came.
            assert written(backend, **fields) == expected
        else:
            with pytest.raises(UnsupportedRequestError) as raised:
                written(backend, **fields)
            assert raised.value.param.split(".")[0] in fields


@pytest.mark.parametrize("backend", backends.names())
def test_each_backend_says_what_it_can(backend: str) -> None:
    said = vars(type(backends.get(backend)))
    assert said["apis"] <= APIS
    dialect = said["dialect"]
    assert (backend in WRITTEN) == (dialect is not None)
    if dialect is not None:
        assert dialect.kinds >= set(WRITTEN[backend])
        assert dialect.kinds == set(WRITTEN[backend])
        assert dialect.server


@pytest.mark.parametrize("backend", WRITTEN)
def test_one_answer_has_one_form(backend: str) -> None:
    with pytest.raises(BadRequestError, match="`regex` ask for a form of the answer; only one"):
        written(backend, guided_choice=["a"], regex="a")


@pytest.mark.parametrize("backend", WRITTEN)
def test_what_asks_for_nothing_is_nothing(backend: str) -> None:
    assert written(backend, guided_json=None, grammar=None) == {}
    assert written(backend, structured_outputs={"json": None}).get("structured_outputs") in (None, {"json": None})


@pytest.mark.parametrize("backend", WRITTEN)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_a_server_knows_by_itself_keeps_its_bytes(backend: str, path: str) -> None:
    dialect = backends.get(backend).dialect
    assert dialect is not None
    raws = {"model": Raw(b'"m"'), "max_tokens": Raw(b"1.0e1"), "stop": Raw(b'[ "\\u00e9" ]')}
    assert dialect.request(path, raws) == raws


def test_tgi_keeps_to_no_form_in_completions() -> None:
    for fields in ({"guided_regex": "a"}, {"response_format": OPENAI}):
        with pytest.raises(UnsupportedRequestError):
            written("tgi", COMPLETIONS, **fields)


@pytest.mark.parametrize("backend", ["sglang", "tensorrt-llm"])
def test_a_grammar_in_the_way_of_lark_is_not_taken_for_ebnf(backend: str) -> None:
    with pytest.raises(UnsupportedRequestError, match="not Lark"):
        written(backend, guided_grammar='start: "a"')


@pytest.mark.parametrize("backend", WRITTEN)
@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "x" * (MOST_BYTES + 1), "[" * 30 + "]" * 30, ""])
def test_a_form_that_nobody_could_keep_costs_little(backend: str, value: str) -> None:
    with pytest.raises((UnsupportedRequestError, BadRequestError)):
        written(backend, guided_json=value)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_a_choice_as_a_regular_expression_takes_its_texts_and_no_other(choices: list[str]) -> None:
    form = as_regex(Constraint(Kind.CHOICE, json.dumps(choices)))
    for each in choices:
        assert re.fullmatch(form, each)
    joined = "".join(choices) + "."
    assert bool(re.fullmatch(form, joined)) == (joined in choices)


@pytest.mark.parametrize("field", [*FIELDS, *OTHERS_WORDS])
def test_the_gateway_sees_each_field_that_vllm_is_to_be_told_otherwise(field: str) -> None:
    """A server that differs in nothing else gets other requests without a look at them."""
    body = read_body(b'{"model":"m","%b":"x"}' % field.encode())
    assert body.is_to_be_put
    assert body.outline().is_to_be_put
    assert not read_body(b'{"model":"m","x":{"%b":1}}' % field.encode()).is_to_be_put


# Fields


@pytest.mark.parametrize("backend", ["transformers", "tensorrt-llm"])
def test_fields_that_change_nothing_are_left_out_where_they_would_be_refused(backend: str) -> None:
    idle = {"metadata": {"a": "b"}, "safety_identifier": "x", "store": True, "service_tier": "auto", "priority": 5}
    usual = {"modalities": ["text"], "verbosity": "medium", "continue_final_message": False, "functions": []}
    kept = {"model": "m", "messages": [], "seed": 1, "stop": ["a"]}
    assert written(backend, **kept, **idle, **usual) == kept


@pytest.mark.parametrize(
    ("backend", "fields"),
    [
        ("transformers", {"top_k": 5}),
        ("transformers", {"n": 2}),
        ("transformers", {"n": True}),
        ("transformers", {"logprobs": True}),
        ("transformers", {"logprobs": 0}),
        ("transformers", {"tool_choice": "required"}),
        ("transformers", {"cache_salt": "s"}),
        ("transformers", {"response_format": {"type": "json_object"}}),
        ("transformers", {"unheard": 1}),
        ("sglang", {"allowed_token_ids": [1]}),
        ("sglang", {"thinking_token_budget": 5}),
        ("sglang", {"include_reasoning": False}),
        ("sglang", {"truncate_prompt_tokens": 5}),
        ("sglang", {"spaces_between_special_tokens": False}),
        ("sglang", {"echo": True}),
        ("vllm", {"stop_regex": "a+"}),
        ("tensorrt-llm", {"bad_words": ["a"]}),
        ("tensorrt-llm", {"min_p_": 1}),
        ("tensorrt-llm", {"prompt_logprobs": 1}),
    ],
)
def test_fields_that_would_be_refused_or_ignored_are_named(backend: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedRequestError) as raised:
        written(backend, model="m", messages=[], **fields)
    assert raised.value.param == next(iter(fields))


@pytest.mark.parametrize("backend", ["vllm", "sglang", "tensorrt-llm", "transformers"])
def test_thinking_is_a_variable_of_the_template_where_a_server_has_no_field_for_it(backend: str) -> None:
    off = {"enable_thinking": False, "thinking": False}
    assert written(backend, enable_thinking=False) == {"chat_template_kwargs": off}
    both = written(backend, enable_thinking=False, chat_template_kwargs={"thinking": True, "a": 1})
    assert both == {"chat_template_kwargs": off | {"thinking": True, "a": 1}}
    assert written(backend, enable_thinking=None) == {}
    for wrong in ({"enable_thinking": "no"}, {"enable_thinking": True, "chat_template_kwargs": []}):
        with pytest.raises(BadRequestError, match="`enable_thinking` must be true or false"):
            written(backend, **wrong)


def test_what_nobody_knows_and_what_asks_for_nothing_goes_to_servers_that_ignore_it() -> None:
    fields = {"unheard": 1, "bad_words": [], "include_reasoning": True, "use_beam_search": False, "seed": 1}
    assert written("sglang", **fields) == fields
    assert written("vllm", **fields, thinking_token_budget=3) == fields | {"thinking_token_budget": 3}


@pytest.mark.parametrize("backend", ["sglang", "tgi", "transformers"])
def test_special_tokens_are_added_to_texts_and_not_to_chats(backend: str) -> None:
    assert written(backend, messages=[], add_special_tokens=False) == {"messages": []}
    assert written(backend, "/v1/completions", prompt="a", add_special_tokens=True) == {"prompt": "a"}
    with pytest.raises(UnsupportedRequestError, match="`add_special_tokens`"):
        written(backend, messages=[], add_special_tokens=True)
    with pytest.raises(UnsupportedRequestError, match="`add_special_tokens`"):
        written(backend, "/v1/completions", prompt="a", add_special_tokens=False)


def test_sglangs_word_for_a_kept_stop_string_is_put_in_vllms() -> None:
    assert written("vllm", no_stop_trim=True) == {"include_stop_str_in_output": True}
    assert written("vllm", no_stop_trim=True, include_stop_str_in_output=False) == {"include_stop_str_in_output": False}


def test_tools_that_shall_not_be_called_are_not_shown_to_a_server_without_a_choice() -> None:
    assert written("transformers", tools=[{}], tool_choice="none") == {}
    assert written("transformers", tools=[{}], tool_choice="auto") == {"tools": [{}]}


def test_tensorrt_llm_is_told_that_tools_may_be_called() -> None:
    assert written("tensorrt-llm", tools=[{}])["tool_choice"] == "auto"
    assert written("tensorrt-llm", tools=[{}], tool_choice="none")["tool_choice"] == "none"
    assert written("tensorrt-llm", max_tokens=1, max_completion_tokens=2) == {"max_completion_tokens": 2}


def test_what_tensorrt_llm_would_tell_in_no_way_that_clients_understand_is_not_asked_of_it() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    assert written("tensorrt-llm", tools=[{}], tool_choice=named)["tool_choice"] == named
    with pytest.raises(UnsupportedRequestError, match="cannot name a function in a stream"):
        written("tensorrt-llm", tools=[{}], tool_choice=named, stream=True)
    assert written("tensorrt-llm", COMPLETIONS, echo=False, logprobs=1) == {"echo": False, "logprobs": 1}
    with pytest.raises(UnsupportedRequestError, match="not those of the prompt"):
        written("tensorrt-llm", COMPLETIONS, echo=True, logprobs=1)
