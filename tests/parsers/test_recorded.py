"""What was written is what we read; where SGLang or vLLM reads something else in the same texts, it is written down.

Whole answers in harmony are read as OpenAI's own parser reads them.
"""

import json
from collections import Counter
from typing import Any

import pytest

from headwater_engine.formats.functions import Function
from headwater_engine.formats.parts import Arguments, Call, Content, Part, Reasoning, joined
from headwater_engine.formats.reader import Reader, Speech
from headwater_engine.formats.registry import CALL_FORMAT_OF, CALL_FORMATS
from tests.parsers.__main__ import FIXTURES
from tests.parsers.answers import Answer, Message, answers
from tests.parsers.texts import TOOLS, WRITERS, Text, made

TEXTS = {each.id: each for each in made()}
OTHERWISE: dict[str, dict[str, tuple[int, str]]] = {
    "sglang": {
        "deepseek_v32": (1, "leaves out spaces around a text"),
        "deepseek_v4": (1, "leaves out spaces around a text"),
        "deepseek_v41": (1, "leaves out spaces around a text"),
        "harmony": (8, "sees no call that is alone behind the prompt"),
        "mistral": (24, "wants a space behind the tag, as tokenizers before Tekken write it"),
        "pythonic": (8, "leaves out calls with numbers below 0"),
        "qwen3_coder": (1, "makes null of the text null"),
    },
    "vllm": {"mistral": (24, "reads no list where the tokenizer has [ARGS], as the one that it was given")},
}
"""By engine and format: of how many texts it finds something else than what was written, and why. We read all."""
ANSWERS = {each.id: each for each in answers()}
OF_OPENAI: dict[str, Any] = json.loads((FIXTURES / "harmony.json").read_text())["found"]
RECORDED = {engine: json.loads((FIXTURES / f"{engine}.json").read_text())["found"] for engine in OTHERWISE}


def read(text: Text, size: int) -> list[list[Any]]:
    calls: list[list[Any]] = []
    for part in parts_of(text.format.split()[0], text.text, size):
        assert not isinstance(part, Content), part
        if isinstance(part, Call):
            calls.append([part.name, ""])
        elif isinstance(part, Arguments):
            calls[part.number][1] += part.text
    return [[name, json.loads(arguments)] for name, arguments in calls]


def parts_of(name: str, text: str, size: int) -> list[Part]:
    known = {name: Function(name, {"properties": properties}) for name, properties in TOOLS.items()}
    reader = Reader(Speech(CALL_FORMAT_OF[name]), known)
    parts = [part for at in range(0, len(text), size) for part in reader.feed(text[at : at + size])]
    return joined([*parts, *reader.flush()])


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_was_written_is_read(text: Text) -> None:
    assert read(text, 1) == read(text, 1_000_000) == [list(call) for call in text.calls]


@pytest.mark.parametrize("engine", RECORDED)
def test_what_others_read_is_that_too_or_it_is_known_why_not(engine: str) -> None:
    found = RECORDED[engine]
    assert len(found) > 250
    differing = Counter(TEXTS[name].format for name, calls in found.items() if not agrees(calls, TEXTS[name]))
    assert differing == {name: count for name, (count, _) in OTHERWISE[engine].items()}


def agrees(calls: Any, text: Text) -> bool:
    """Whether what was recorded is what was written. A text instead of calls: it failed."""
    return not isinstance(calls, str) and [[name, json.loads(of)] for name, of in calls] == [
        list(each) for each in text.calls
    ]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_in_harmony_is_read_as_openai_reads_it(answer: Answer) -> None:
    found = [
        Message(channel, (to or "").removeprefix("functions."), text) for channel, to, text in OF_OPENAI[answer.id]
    ]
    assert found == answer.messages
    assert parts_of("harmony", answer.text, 1) == parts_of("harmony", answer.text, 1_000_000) == parts_in(found)


def parts_in(messages: list[Message]) -> list[Part]:
    parts: list[Part] = []
    calls = 0
    for each in messages:
        if each.to:
            parts += [Call(calls, each.to), Arguments(calls, each.content)]
            calls += 1
        else:
            parts.append((Reasoning if each.channel == "analysis" else Content)(each.content))
    return joined(parts)


def test_each_format_is_written() -> None:
    assert {name.split()[0] for name in WRITERS} == {each.names[0] for each in CALL_FORMATS}
