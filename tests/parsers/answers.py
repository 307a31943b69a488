"""Whole answers in OpenAI's harmony format: thoughts, preambles, calls and what is said, with heads of all kinds."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.parsers.texts import make_call

_SAID = ("Fine.", "It is 3 < 5.", '{"a": 1}', "to=functions.note", "two\n\nlines", "京都 🌸", "[1]", "<b>!</b>", "json")


@dataclass(frozen=True, slots=True)
class Message:
    channel: str
    to: str
    """The function that it calls; empty: none."""
    content: str


@dataclass(frozen=True, slots=True)
class Answer:
    id: str
    text: str
    messages: list[Message]
    """That were written."""


def answers(count: int = 48) -> Iterator[Answer]:
    """The same each time."""
    for number in range(count):
        rng = random.Random(number)
        messages = list(_messages(rng)) or [Message("final", "", _SAID[0])]
        yield Answer(str(number), "<|start|>assistant".join(_written(each, rng) for each in messages), messages)


def _messages(rng: random.Random) -> Iterator[Message]:
    for channel in ("analysis", "analysis", "commentary"):
        if rng.random() < 0.5:
            yield Message(channel, "", rng.choice(_SAID))
    for _ in range(rng.choice((0, 1, 1, 2))):
        name, arguments = make_call(rng)
        yield Message("commentary", name, json.dumps(arguments, ensure_ascii=False))
        if rng.random() < 0.3:
            yield Message("analysis", "", rng.choice(_SAID))
    if rng.random() < 0.5:
        yield Message("final", "", rng.choice(_SAID))


def _written(message: Message, rng: random.Random) -> str:
    body = f"<|message|>{message.content}"
    if not message.to:
        return f"<|channel|>{message.channel}{body}{'<|return|>' if message.channel == 'final' else '<|end|>'}"
    to, kind = f" to=functions.{message.to}", rng.choice((" <|constrain|>json", " json", ""))
    channel = f"<|channel|>{message.channel}"
    return (to + channel if rng.random() < 0.5 else channel + to) + kind + body + "<|call|>"
