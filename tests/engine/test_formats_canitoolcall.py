"""What other engines' tests, models' own templates and public bug reports have as calls is read as they say it is.

The corpus is canitoolcall's: texts of models with the parts that a parser should find, each with its source. Its
families that have a format here are read; where what we find is something else on purpose, `OTHERWISE` says why.
"""

import pytest
from canitoolcall.fixtures import Fixture, load_fixtures
from canitoolcall.pytest_plugin import assert_conforms, family_for
from canitoolcall.results import ParsedToolCall, ParseResult

from headwater_engine.formats.functions import Function
from headwater_engine.formats.parts import Arguments, Call, Content, Part, Reasoning, joined
from headwater_engine.formats.reader import Reader, Speech
from headwater_engine.formats.registry import CALL_FORMAT_OF, THINKING_OF

FORMATS = {
    "qwen3-hermes": "hermes",
    "qwen3-xml": "qwen3_coder",
    "gpt-oss": "harmony",
    "mistral": "mistral",
    "x-llama-json": "llama3_json",
    "x-llama-pythonic": "pythonic",
    "x-deepseek-v3": "deepseek_v3",
    "x-deepseek-v31": "deepseek_v31",
    "x-deepseek-v32": "deepseek_v32",
    "x-deepseek-v4": "deepseek_v4",
    "x-deepseek-v41": "deepseek_v41",
}
"""By family, or tag."""
CUT = (
    "a call that was cut off is told as far as it goes, as OpenAI does: its deltas are sent, and the reason is `length`"
)
LETTERS = "what a model spells out in letters cannot be told from the marker"
OTHERWISE = {
    "deepseek/vllm-v3-malformed-missing-brace": "a call's beginning is sent, and cannot be taken back",
    "deepseek/v3-truncated-mid-arguments": CUT,
    "deepseek/v31-truncated-mid-arguments": CUT,
    "deepseek/v32-truncated-mid-arguments": CUT,
    "deepseek/v32-truncated-second-parallel-call": CUT,
    "deepseek/v4-truncated-mid-arguments": CUT,
    "deepseek/v4-truncated-second-parallel-call": CUT,
    "deepseek/v41-truncated-mid-arguments": CUT,
    "deepseek/v41-truncated-second-parallel-call": CUT,
    "gpt-oss/harmony-marker-in-reasoning": LETTERS,
    "gpt-oss/harmony-truncated-in-arguments": CUT,
    "llama/l3-truncated-inside-parameters": CUT,
    "llama/l4-truncated-missing-close-bracket": CUT,
    "mistral/v13think-stop-at-open-marker": "what is no call is content, to the letter",
    "mistral/v13think-truncated-in-arguments": CUT,
    "qwen3-hermes/bug-sglang-30480-truncated-mid-arguments": CUT,
    "qwen3-hermes/truncated-mid-arguments-no-thinking": CUT,
    "qwen3-hermes/truncated-mid-arguments-thinking": CUT,
    "qwen3-hermes/truncated-second-parallel-call": CUT,
    "qwen3-hermes/vllm-invalid-json-missing-brace": "the arguments are whole; only the brace around the call is not",
    "qwen3-xml/q38-truncated-at-tool-call-open": "what is no call is content, to the letter",
    "qwen3-xml/q38-truncated-in-parameter": CUT,
}
FIXTURES = load_fixtures(families=["qwen3-hermes", "qwen3-xml", "gpt-oss", "mistral", "llama", "deepseek"])
CUTS = [1, 3, 7, 1_000_000]


def speech_of(fixture: Fixture) -> Speech:
    (name,) = (FORMATS[each] for each in (fixture.family, *fixture.tags) if each in FORMATS)
    of_mistral = fixture.family == "mistral" and "x-think-text" not in fixture.tags
    thinking = None if fixture.family in ("llama", "gpt-oss") else THINKING_OF["mistral" if of_mistral else "think"]
    return Speech(CALL_FORMAT_OF[name], thinking)


def parsed(fixture: Fixture, size: int) -> ParseResult:
    """In pieces of `size` characters."""
    speech = speech_of(fixture)
    functions = [tool["function"] for tool in fixture.tools]
    known = {each["name"]: Function(each["name"], each.get("parameters") or {}) for each in functions}
    is_open = speech.thinking is not None and speech.thinking.is_open(prompt_of(fixture))
    reader = Reader(speech, known, is_open=is_open)
    text = fixture.raw_output
    parts = [part for at in range(0, len(text), size) for part in reader.feed(text[at : at + size])]
    return result(joined([*parts, *reader.flush()]))


def prompt_of(fixture: Fixture) -> str:
    """Its end."""
    if fixture.generation_prompt is not None:
        return fixture.generation_prompt
    family = family_for(fixture)
    assert family is not None
    return next(
        each.default_generation_prompt or "" for each in family.reference_models if each.repo == fixture.models[0]
    )


def result(parts: list[Part]) -> ParseResult:
    calls: list[ParsedToolCall] = []
    for part in parts:
        if isinstance(part, Call):
            calls.append(ParsedToolCall(part.name, ""))
        elif isinstance(part, Arguments):
            calls[part.number] = ParsedToolCall(
                calls[part.number].name, f"{calls[part.number].arguments_raw}{part.text}"
            )
    content = "".join(part.text for part in parts if isinstance(part, Content))
    return ParseResult(content, "".join(part.text for part in parts if isinstance(part, Reasoning)), tuple(calls))


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.id)
def test_what_a_model_wrote_is_read_as_others_say_that_it_should_be(fixture: Fixture) -> None:
    first, *others = [parsed(fixture, size) for size in CUTS]
    assert all(each == first for each in others)
    if fixture.id not in OTHERWISE:
        assert_conforms(fixture, first, soft=True)  # white space around reasoning and calls is left out here
    else:
        with pytest.raises(AssertionError, match="does not conform"):
            assert_conforms(fixture, first, soft=True)


def test_the_corpus_is_there_with_all_that_is_read_otherwise() -> None:
    assert len(FIXTURES) > 300
    assert OTHERWISE.keys() <= {fixture.id for fixture in FIXTURES}
    assert {speech_of(each).calls for each in FIXTURES} == set(CALL_FORMAT_OF.values())
