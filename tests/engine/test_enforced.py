"""A grammar of calls takes what a format's reader reads as those calls, and nothing else."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.formats.enforced import Calling, Wish, enforced
from headwater_engine.formats.functions import Function, Spelling
from headwater_engine.formats.reader import Speech
from headwater_engine.formats.registry import CALL_FORMAT_OF, THINKING
from headwater_engine.grammar.compiler import Compiler, grammar_of
from headwater_engine.grammar.matcher import GrammarError
from tests.engine import chat_models
from tests.engine.test_formats import BERN, CALLS, WRITTEN, read

CITY = {"city": {"type": "string"}, "days": {"type": "integer"}}
STRICT = Function(
    "weather", {"type": "object", "properties": CITY, "required": ["city"], "additionalProperties": False}, strict=True
)
FUNCTIONS = (STRICT, Function("clock"))
TOKENIZERS = {
    "hermes": "qwen3",
    "qwen3_coder": "qwen3",
    "llama3_json": "llama3_1",
    "mistral": "smollm2",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v31": "deepseek_v3",
    "deepseek_v32": "deepseek_v3",
    "deepseek_v4": "deepseek_v3",
    "deepseek_v41": "deepseek_v3",
    "pythonic": "llama3_1",
    "harmony": "gptoss",
}
AS_ENFORCED = WRITTEN | {
    # In the order of the grammar, with strings as JSON has them; harmony's model ends its answer behind a call.
    "hermes": WRITTEN["hermes"].replace('{"name": "clock"}', '{"name": "clock", "arguments": {}}'),
    "mistral": WRITTEN["mistral"].replace('"arguments": {}, "name": "clock"', '"name": "clock", "arguments": {}'),
    "pythonic": '[weather(city="Bern, \\"3)}\'", days=2), clock()]',
    "harmony": WRITTEN["harmony"].partition("<|call|>")[0],
}
FORM = Constraint(Kind.JSON_SCHEMA, '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}')


def judge(model: str, speech: Speech, wish: Wish, *, is_open: bool = False) -> Callable[[str], bool]:
    """Says of a text whether it may be an answer, as the model's own tokenizer cuts it."""
    tokenizer: Tokenizer = chat_models.tokenizer(model).backend_tokenizer
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    constraint = enforced(wish, speech, Spelling(added.get, speech.markers), is_open=is_open)
    assert constraint is not None
    end = chat_models.tokenizer(model).eos_token_id
    matcher = LLMatcher(LLTokenizer(tokenizer.to_str(), eos_token=[end]), grammar_of(constraint, {}), log_level=0)
    assert not matcher.is_error(), matcher.get_error()

    def allows(text: str) -> bool:
        walk = matcher.deep_copy()
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        return bool(walk.validate_tokens(tokens) == len(tokens) and walk.consume_tokens(tokens) and walk.is_accepting())

    return allows


@pytest.mark.parametrize("name", AS_ENFORCED)
def test_only_calls_are_allowed_where_there_must_be_some(name: str) -> None:
    text = AS_ENFORCED[name]
    allows = judge(TOKENIZERS[name], Speech(CALL_FORMAT_OF[name]), Wish(FUNCTIONS, Calling.ALWAYS))
    assert read(name, text) == CALLS[: 2 if name == "harmony" else 4]
    assert allows(text)
    assert not allows(text.replace("weather", "whether"))
    assert not allows(text.replace("city", "town"))
    assert not allows("Hi")


@pytest.mark.parametrize("name", AS_ENFORCED)
def test_arguments_are_held_to_their_schema_where_there_may_be_calls(name: str) -> None:
    text = AS_ENFORCED[name]
    allows = judge(TOKENIZERS[name], Speech(CALL_FORMAT_OF[name]), Wish(FUNCTIONS, Calling.MAYBE))
    assert allows(text)
    assert not allows(text.replace("city", "town"))
    assert allows("<|channel|>final<|message|>Hi" if name == "harmony" else "Hi")


@pytest.mark.parametrize("name", AS_ENFORCED)
def test_references_are_looked_for_from_the_root_of_the_arguments(name: str) -> None:
    """Which stands somewhere within what a format makes of it."""
    properties = CITY | {"days": {"$ref": "#/properties/hours"}, "hours": {"$ref": "#/$defs/number"}}
    parameters = {"$defs": {"number": {"type": "integer"}}, "type": "object", "properties": properties}
    weather = Function("weather", {**parameters, "required": ["city"], "additionalProperties": False}, strict=True)
    allows = judge(TOKENIZERS[name], Speech(CALL_FORMAT_OF[name]), Wish((weather, Function("clock")), Calling.ALWAYS))
    text = AS_ENFORCED[name]
    assert allows(text)
    for wrong in ("true", "2.5"):
        assert not allows(re.sub(r"\b2\b", wrong, text))


def test_arguments_may_be_made_of_arguments_and_of_nothing_that_there_is_not() -> None:
    def call(next_one: str) -> str:
        return f'<tool_call>\n{{"name": "go", "arguments": {{"next": {next_one}}}}}\n</tool_call>'

    properties = {"next": {"anyOf": [{"$ref": "#"}, {"enum": [None, {"$ref": "#"}]}]}}
    go = Function("go", {"properties": properties, "required": ["next"], "additionalProperties": False}, strict=True)
    allows = judge("qwen3", Speech(CALL_FORMAT_OF["hermes"]), Wish((go,), Calling.ALWAYS))
    assert allows(call("null"))
    assert allows(call('{"next": {"next": null}}'))
    assert allows(call('{"$ref": "#"}')), "a value, and no reference"
    assert not allows(call('{"name": "go", "arguments": {"next": null}}'))
    lost = Function("go", {"properties": {"a": {"$ref": "#/properties/name"}}}, strict=True)
    with pytest.raises(AssertionError, match="/properties/name"):
        judge("qwen3", Speech(CALL_FORMAT_OF["hermes"]), Wish((lost,), Calling.ALWAYS))


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_what_is_wrong_in_a_schema_that_is_not_strict_is_passed_over(name: str) -> None:
    parameters = {"properties": {"city": {"type": "string"}, "n": {"$ref": "#/nowhere"}}, "required": ["city"]}
    wish = Wish((STRICT, Function("other", parameters)), Calling.MAYBE)
    speech = Speech(CALL_FORMAT_OF[name])
    tokenizer = chat_models.tokenizer(TOKENIZERS[name])
    added = {each.content: number for number, each in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()}
    constraint = enforced(wish, speech, Spelling(added.get, speech.markers), is_open=False)
    assert constraint is not None and constraint.spare is not None
    compiler = Compiler(tokenizer.backend_tokenizer.to_str(), (tokenizer.eos_token_id,), len(tokenizer))
    compiler.compile(constraint).result(300)
    strict = enforced(
        replace(wish, functions=(replace(wish.functions[1], strict=True),)),
        speech,
        Spelling(added.get, speech.markers),
        is_open=False,
    )
    assert strict is not None and strict.spare is None
    with pytest.raises(GrammarError, match=r"^Pointer '/(properties/n/)?nowhere' does not exist"):
        compiler.compile(strict).result(300)
    compiler.close()


def test_one_call_alone_is_allowed_where_there_may_be_no_more() -> None:
    allows = judge("qwen3", Speech(CALL_FORMAT_OF["hermes"]), Wish(FUNCTIONS, Calling.ALWAYS, many=False))
    first = AS_ENFORCED["hermes"].partition('\n<tool_call>\n{"name": "clock"')[0]
    assert allows(first) and not allows(AS_ENFORCED["hermes"])


def test_an_argument_that_no_schema_names_is_not_written() -> None:
    loose = Function("weather", {"type": "object", "properties": CITY})
    allows = judge("qwen3", Speech(CALL_FORMAT_OF["hermes"]), Wish((loose, Function("clock")), Calling.ALWAYS))
    text = AS_ENFORCED["hermes"]
    assert allows(text)
    assert not allows(text.replace('"days": 2', '"nights": 2'))
    assert not allows(text.replace('"arguments": {}', '"arguments": {"zone": 1}'))


@pytest.mark.parametrize("name", AS_ENFORCED)
def test_names_of_any_letters_make_a_grammar(name: str) -> None:
    odd = 'Zü"\\ </tool_call> <|call|> [ARGS] {x} %json // # '
    schema = {"properties": {odd: {"type": "string", "enum": [odd]}, "b": {"type": "string"}}, "required": [odd, "x"]}
    for calling in (Calling.ALWAYS, Calling.MAYBE):
        wish = Wish((Function(odd, schema, strict=True), Function("Zürich")), calling)
        judge(TOKENIZERS[name], Speech(CALL_FORMAT_OF[name]), wish)


def test_tags_that_are_no_tokens_are_held_to_as_text() -> None:
    """SmolLM2 has no token `<tool_call>`."""
    allows = judge("smollm2", Speech(CALL_FORMAT_OF["hermes"]), Wish(FUNCTIONS, Calling.MAYBE))
    assert allows(f"Well. {AS_ENFORCED['hermes']} Bye.")
    assert not allows(f"Well. {AS_ENFORCED['hermes'].replace('city', 'town')} Bye.")


THINKS = Speech(CALL_FORMAT_OF["hermes"], THINKING[0])


def test_a_form_begins_behind_the_reasoning() -> None:
    allows = judge("qwen3", THINKS, Wish(form=FORM))
    assert allows('{"a": 1}') and allows('<think>\nHm.\n</think>\n\n{"a": 1}')
    assert not allows("<think>Hm.</think>Well") and not allows("Well")
    allows = judge("qwen3", THINKS, Wish(form=FORM), is_open=True)
    assert allows('Hm.\n</think>\n\n{"a": 1}') and not allows('{"a": 1}')


@pytest.mark.parametrize(
    ("kind", "form", "fits"),
    [(Kind.REGEX, "ab+", "abb"), (Kind.GRAMMAR, 'root ::= "a" "b"*', "abb"), (Kind.CHOICE, '["abb"]', "abb")],
)
def test_a_form_of_any_kind_may_stand_behind_reasoning(kind: Kind, form: str, fits: str) -> None:
    allows = judge("qwen3", THINKS, Wish(form=Constraint(kind, form)))
    assert allows(f"<think>Hm.</think>{fits}") and not allows("<think>Hm.</think>c")


def test_an_answer_with_a_form_may_be_calls_instead() -> None:
    allows = judge("qwen3", THINKS, Wish(FUNCTIONS, Calling.MAYBE, form=FORM))
    assert allows(f"<think>Hm.</think>{AS_ENFORCED['hermes']}") and allows('{"a": 1}') and not allows("Well")


def test_reasoning_ends_within_its_budget() -> None:
    short, long = "<think>Hm.</think>Well. {}", "<think>Hm, let me think of it for a while.</think>Well."
    allows = judge("qwen3", THINKS, Wish(budget=4))
    assert allows(short) and not allows(long) and allows("Well.") and not allows(f"Well. {long}")
    allows = judge("qwen3", THINKS, Wish(budget=0), is_open=True)
    assert allows("</think>Well.") and not allows("Hm.</think>Well.")
    allows = judge("qwen3", THINKS, Wish(budget=4, form=FORM))
    assert allows('<think>Hm.</think>{"a": 1}') and not allows('<think>Hm, let me think of it.</think>{"a": 1}')


def test_harmony_has_forms_and_budgets_on_its_channels() -> None:
    speech = Speech(CALL_FORMAT_OF["harmony"])
    thought, final = "<|channel|>analysis<|message|>Hm, hm.<|end|><|start|>assistant", "<|channel|>final<|message|>"
    allows = judge("gptoss", speech, Wish(form=FORM))
    assert allows(f'{thought}{final}{{"a": 1}}') and allows(f'{final}{{"a": 1}}') and not allows(f"{final}Well")
    allows = judge("gptoss", speech, Wish(budget=1))
    assert allows(f"{final}Well") and not allows(f"{thought}{final}Well")
    assert allows(f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{BERN}")


def test_what_asks_for_nothing_is_held_to_nothing() -> None:
    assert enforced(Wish((Function("clock"),), Calling.MAYBE), THINKS, Spelling(lambda _: None), is_open=False) is None
    assert enforced(Wish(form=FORM), Speech(), Spelling(lambda _: None), is_open=False) is FORM
    with pytest.raises(ValueError, match="token of its own"):
        enforced(Wish(budget=3), THINKS, Spelling(lambda _: None), is_open=False)
