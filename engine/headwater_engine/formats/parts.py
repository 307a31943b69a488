"""What an answer is made of. An API writes parts, and knows nothing of how a model spells them."""

from collections.abc import Iterable
from typing import NamedTuple


class Content(NamedTuple):
    """What is said to the user."""

    text: str


class Reasoning(NamedTuple):
    """What the model said to itself before."""

    text: str


class Call(NamedTuple):
    """A function is called; its arguments follow."""

    number: int
    """Calls of one answer count from 0."""
    name: str


class Arguments(NamedTuple):
    """Some more of a call's arguments, which joined are a JSON object, unless the answer ended within it."""

    number: int
    text: str


Part = Content | Reasoning | Call | Arguments


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same with as few parts as can be: however an answer was cut, this is the same."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        match part, last:
            case Content(text), Content(before):
                result[-1] = Content(before + text)
            case Reasoning(text), Reasoning(before):
                result[-1] = Reasoning(before + text)
            case Arguments(number, text), Arguments(other, before) if number == other:
                result[-1] = Arguments(number, before + text)
            case ((Content("") | Reasoning("") | Arguments(_, "")), _):
                pass
            case _:
                result.append(part)
    return result
