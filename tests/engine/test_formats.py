"""Reasoning and calls are read the same however their text is cut, and what is none of them is content."""

import importlib
import json
import pkgutil
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_engine import formats
from headwater_engine.formats.functions import Function
from headwater_engine.formats.parts import Arguments, Call, Content, Part, Reasoning, joined
from headwater_engine.formats.reader import Reader, Speech
from headwater_engine.formats.registry import (
    CALL_FORMAT_OF,
    CALL_FORMATS,
    THINKING,
    THINKING_OF,
    format_that_reads,
    thinking_in,
)
from headwater_engine.server.messages import PROBED
from headwater_engine.server.template_process import Templates
from tests.engine.chat_models import template_source, variables

FUNCTIONS = {
    "weather": Function("weather", {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}),
    "clock": Function("clock"),
}
BERN = '{"city": "Bern, \\"3)}\'", "days": 2}'
CALLS = [Call(0, "weather"), Arguments(0, BERN), Call(1, "clock"), Arguments(1, "{}")]
WRITTEN = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {BERN}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock"}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nBern, \"3)}'\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
    "llama3_json": f'{{"name": "weather", "parameters": {BERN}}}; {{"name": "clock", "parameters": {{}}}}',
    "mistral": f'[TOOL_CALLS][{{"name": "weather", "arguments": {BERN}}}, {{"arguments": {{}}, "name": "clock"}}]',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    f"{BERN}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{{}}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "deepseek_v31": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{BERN}<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">Bern, "3)}\'</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    '</｜DSML｜invoke>\n<｜DSML｜invoke name="clock">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    "deepseek_v4": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">Bern, "3)}\'</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    '</｜DSML｜invoke>\n<｜DSML｜invoke name="clock">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
    "deepseek_v41": '<｜DSML｜ calls>\n<｜DSML｜ invoke name="weather">\n'
    '<｜DSML｜ parameter name="city" string="true">Bern, "3)}\'</｜DSML｜ parameter>\n'
    '<｜DSML｜ parameter name="days" string="false">2</｜DSML｜ parameter>\n'
    '</｜DSML｜ invoke>\n<｜DSML｜ invoke name="clock">\n</｜DSML｜ invoke>\n</｜DSML｜ calls>',
    "pythonic": "[weather(city='Bern, \"3)}\\'', days=2), clock()]",
    "harmony": f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{BERN}<|call|>"
    "<|start|>assistant<|channel|>commentary to=functions.clock<|message|>{}<|call|>",
}
"""The same two calls in each format."""
ANYWHERE = [each.names[0] for each in CALL_FORMATS if each.trigger]
"""Formats whose calls may stand behind content."""


def read(name: str, text: str, cuts: list[int] | None = None, **options: Any) -> list[Part]:
    return read_as(Speech(CALL_FORMAT_OF[name]), text, cuts, **options)


def read_as(speech: Speech, text: str, cuts: list[int] | None = None, **options: Any) -> list[Part]:
    reader = Reader(speech, FUNCTIONS, **options)
    places = [0, *sorted(set(cuts or [])), len(text)]
    parts = [part for at, end in pairwise(places) for part in reader.feed(text[at:end])]
    return joined([*parts, *reader.flush()])


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_are_read(name: str) -> None:
    assert read(name, WRITTEN[name]) == CALLS


@pytest.mark.parametrize("name", ANYWHERE)
def test_content_stands_before_calls_without_the_space_between(name: str) -> None:
    assert read(name, f"Let me see.\n\n{WRITTEN[name]}\n") == [Content("Let me see."), *CALLS]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_more_than_are_wanted_is_left_out(name: str) -> None:
    assert read(name, WRITTEN[name], list(range(1, 500)), most_calls=1) == CALLS[:2]


@pytest.mark.parametrize("name", WRITTEN)
def test_each_beginning_is_the_beginning_of_the_same_parts(name: str) -> None:
    """So a call that is cut off is the beginning of one, and no content."""
    whole = read(name, WRITTEN[name])
    for end in range(len(WRITTEN[name])):
        for part, of in zip(read(name, WRITTEN[name][:end]), whole, strict=False):
            if isinstance(part, Content):  # the name is not known yet: nothing is lost, either
                assert part.text in WRITTEN[name]
            else:
                assert type(part) is type(of) and of[-1].startswith(part[-1])


PIECES = [
    *("<tool_call>", "</tool_call>", "<function=weather>", "<parameter=city>", "</parameter>", "</function>", "<"),
    *(
        '{"name": "weather"',
        ', "arguments": ',
        '{"city": "B',
        "}",
        '"',
        "\\",
        "]",
        "[",
        ", ",
        ";",
        "\n",
        " ",
        "text",
        "(",
    ),
    *(
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "weather",
        "weather(",
        "city='x'",
        ")",
        "'",
        "clock()",
        '{"name": "clock"}',
    ),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "function",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "```json\n",
        "{}",
    ),
    *("<｜DSML｜function_calls>", '<｜DSML｜invoke name="weather">', '<｜DSML｜parameter name="city" string="true">'),
    *("</｜DSML｜parameter>", "</｜DSML｜invoke>", "</｜DSML｜function_calls>", "<|python_tag|>", "<|python_start|>"),
    *(
        "<|channel|>",
        "analysis",
        "final",
        "commentary to=functions.clock",
        "<|message|>",
        "<|end|>",
        "<|start|>assistant",
    ),
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<|call|>", ":", "1", "true"),
]
SPEECHES = [Speech(each) for each in CALL_FORMATS] + [Speech(CALL_FORMAT_OF["hermes"], each) for each in THINKING]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.sampled_from(PIECES), max_size=16).map("".join))
def test_any_cut_of_any_text_gives_the_same_parts(data: st.DataObject, text: str) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    is_open = data.draw(st.booleans())
    for speech in SPEECHES:
        whole = read_as(speech, text, is_open=is_open)
        assert read_as(speech, text, cuts, is_open=is_open) == whole, speech
        assert read_as(speech, text, list(range(len(text))), is_open=is_open) == whole, speech
        assert len(read_as(speech, text, cuts, is_open=is_open, most_calls=1)) <= len(whole)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_cut_of_calls_gives_the_same_calls(data: st.DataObject) -> None:
    for name, text in WRITTEN.items():
        assert read(name, text, data.draw(st.lists(st.integers(0, len(text)), max_size=6))) == CALLS


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_characters="<[{＜", exclude_categories=["Cs"])))
def test_a_text_without_calls_is_content_to_the_letter(text: str) -> None:
    for speech in SPEECHES:
        assert "".join(part.text for part in read_as(speech, text) if isinstance(part, Content)) == text


@pytest.mark.parametrize("name", ["hermes", "mistral"])
@pytest.mark.parametrize("inside", ["no JSON", '{"nome": "weather"}', '{"name": 3}', "", "{", '{"name"'])
def test_what_turns_out_to_be_no_call_is_content(name: str, inside: str) -> None:
    text = f"Well, {CALL_FORMAT_OF[name].trigger}{inside}"
    assert read(name, text) == [Content(text)]


def test_an_answer_that_is_a_json_object_is_no_call_of_an_unknown_function() -> None:
    for text in ('{"name": "Ada", "age": 36}', '{"name": "Ada", "parameters": {}}', "[1, 2]", "[what(a=1)]"):
        assert read("llama3_json", text) == read("pythonic", text) == [Content(text)]


def test_arguments_that_were_written_into_a_string_are_taken_out_of_it() -> None:
    text = f'<tool_call>{{"name": "weather", "arguments": {json.dumps(BERN)}}}</tool_call>'
    assert read("hermes", text, list(range(len(text)))) == CALLS[:2]


def test_mistral_names_calls_before_their_arguments_since_its_eleventh_tokenizer() -> None:
    assert read("mistral", f"[TOOL_CALLS]weather[ARGS]{BERN}[TOOL_CALLS]clock[CALL_ID]a1[ARGS]{{}}") == CALLS
    assert read("mistral", f"[TOOL_CALLS]weather{BERN}[TOOL_CALLS]clock{{}}") == CALLS


def test_an_argument_without_quotes_is_what_its_schema_says() -> None:
    def value(key: str, text: str) -> Any:
        call = f"<tool_call>\n<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
        kinds = {"s": {"type": "string"}, "i": {"type": "integer"}, "o": {"type": "object"}, "any": {}}
        reader = Reader(Speech(CALL_FORMAT_OF["qwen3_coder"]), {"f": Function("f", {"properties": kinds})})
        (arguments,) = (part for part in joined([*reader.feed(call), *reader.flush()]) if isinstance(part, Arguments))
        return json.loads(arguments.text)[key]

    assert value("s", "12") == "12"
    assert value("s", "\n two\n") == "\n two\n"
    assert value("i", "12") == 12
    assert value("i", "twelve") == "twelve"
    assert value("o", '{"a": [1]}') == {"a": [1]}
    assert value("any", "True") is True
    assert value("any", "plain") == "plain"


@pytest.mark.parametrize("thinking", THINKING)
def test_reasoning_stands_before_content_and_calls(thinking: Any) -> None:
    speech = Speech(CALL_FORMAT_OF["hermes"], thinking)
    text = f"{thinking.begin}\nHm. <tool_call>?\n{thinking.end}\n\nWell.\n{WRITTEN['hermes']}"
    said = [Reasoning("Hm. <tool_call>?"), Content("Well."), *CALLS]
    assert read_as(speech, text) == said
    assert read_as(speech, text.removeprefix(thinking.begin), is_open=True) == said
    assert read_as(speech, text, is_open=True) == said
    assert read_as(speech, f"{thinking.begin}Hm", is_open=False) == [Reasoning("Hm")]
    assert read_as(speech, "Well.", is_open=False) == [Content("Well.")]


def test_a_call_at_the_beginning_of_a_line_ends_reasoning_that_has_no_end() -> None:
    speech = Speech(CALL_FORMAT_OF["hermes"], THINKING_OF["think"])
    text = f"Hm. Not <tool_call> yet.\n{WRITTEN['hermes']}"
    assert read_as(speech, text, is_open=True) == [Reasoning("Hm. Not <tool_call> yet."), *CALLS]
    assert read_as(speech, WRITTEN["hermes"], is_open=True) == CALLS
    reader = Reader(speech, {}, is_open=True)
    assert joined([*reader.feed(text), *reader.flush()]) == [Reasoning(text)], "where nothing can be called"


def test_a_broken_call_takes_no_later_one_with_it() -> None:
    broken = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"\n</tool_call>\n'
    assert read("hermes", broken + WRITTEN["hermes"].partition("\n<tool_call>")[0]) == [
        *(Call(0, "weather"), Arguments(0, '{"city": "Bern"\n')),
        *(Call(1, "weather"), Arguments(1, BERN)),
    ]


def test_what_harmony_says_to_a_tool_that_nobody_offered_is_no_call() -> None:
    text = (
        "<|channel|>commentary to=python <|constrain|>code<|message|>print(1)<|end|>"
        "<|start|>assistant<|channel|>final<|message|>1"
    )
    assert read("harmony", text, list(range(len(text)))) == [Content("1")]


def test_tags_within_a_line_of_an_argument_are_part_of_it() -> None:
    def city(inside: str) -> Any:
        call = f"<tool_call>\n<function=weather>\n<parameter=city>{inside}</function>\n</tool_call>"
        return json.loads(read("qwen3_coder", call, list(range(len(call))))[1][1])

    assert city("\nA </parameter> </function> <parameter=x>\n</parameter>\n") == {
        "city": "A </parameter> </function> <parameter=x>"
    }
    assert city("\nBern\n<parameter=days>\n2\n</parameter>\n") == {"city": "Bern", "days": 2}
    assert city("Bern</parameter>") == {"city": "Bern"}
    assert city("\n</parameter>\n") == {"city": ""}


def test_whether_an_answer_begins_within_reasoning_is_seen_in_its_prompt() -> None:
    think, deepseek_r1, *_ = THINKING
    assert think.is_open("...<|im_start|>assistant\n<think>\n")
    assert not think.is_open("...<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not think.is_open("<think> is a tag<|im_end|>\n<|im_start|>assistant\n")
    assert deepseek_r1.is_open("...<｜Assistant｜>")
    assert not deepseek_r1.is_open("...<｜Assistant｜></think>")


def test_harmony_has_reasoning_preambles_and_answers_on_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>"
        "<|start|>assistant to=functions.clock<|channel|>commentary json<|message|>{}"
    )
    said = [Reasoning("Hm."), Content("Let me see."), Call(0, "clock"), Arguments(0, "{}")]
    assert read("harmony", text, list(range(len(text)))) == said
    assert read("harmony", "<|channel|>final<|message|>Fine.<|return|>") == [Content("Fine.")]
    assert read("harmony", "Fine.") == [Content("Fine.")]


FOUND = {
    "qwen3": ("hermes", "think"),
    "hermes3": ("hermes", None),
    "qwen3_coder": ("qwen3_coder", None),
    "mistral_nemo": ("mistral", None),
    "deepseek_v3": ("deepseek_v3", None),
    "deepseek_r1": ("deepseek_v3", "think"),
    "deepseek_v3_2": ("deepseek_v32", "think"),
    "gpt_oss": ("harmony", None),
    "smollm2": (None, None),
    "gemma3": (None, None),
    "llama_guard3": (None, None),
    "llama3_json": ("llama3_json", None),
    "pythonic": ("pythonic", None),
    "deepseek_v31": ("deepseek_v31", "think"),
}
SHOWS_TOOLS = {"qwen3", "hermes3", "qwen3_coder", "mistral_nemo", "deepseek_v3_2", "gpt_oss", "llama3_json", "pythonic"}
SHOWS_TOOLS |= {"deepseek_v31"}


@pytest.mark.parametrize("model", FOUND)
def test_a_template_says_in_which_format_its_model_writes(model: str) -> None:
    source = template_source(model)
    templates = Templates(source, source, variables(model), [], True)
    found = format_that_reads(templates.calls_as, *PROBED)
    thinking = thinking_in(source)
    assert (found and found.names[0], thinking and thinking.names[0]) == FOUND[model]
    assert templates.shows_tools == (model in SHOWS_TOOLS)


def test_each_format_is_registered_and_tried_here() -> None:
    modules = [
        importlib.import_module(f"{formats.__name__}.{each.name}") for each in pkgutil.iter_modules(formats.__path__)
    ]
    written = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "trigger")
    }
    written = {each for each in written if isinstance(each.__dict__.get("names"), tuple)}
    assert {type(each) for each in CALL_FORMATS} == written
    assert sorted(each.names[0] for each in CALL_FORMATS) == sorted(WRITTEN)
    # DeepSeek has published no template with its latest ones, but a program.
    assert {found for found, _ in FOUND.values() if found} == set(WRITTEN) - {"deepseek_v4", "deepseek_v41"}
    assert len(CALL_FORMAT_OF) == sum(len(each.names) for each in CALL_FORMATS)
    assert len(THINKING_OF) == sum(len(each.names) for each in THINKING)


def test_each_name_of_a_format_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()
    assert {*CALL_FORMAT_OF, *THINKING_OF} <= set(re.findall("`([^`\n]+)`", text))
