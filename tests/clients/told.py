"""What all steps have in common: where they ask, what they ask for, and what they make of the answer.

Whoever answers is a stand-in that calls the first tool that it is shown, for Bern, says that it is sunny once the tool
has answered, and gives Bern where a form is asked for. Or it is a real model, too small to say anything of the kind:
then an answer has to be of the same shape.
"""

import sys
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, Field

URL, REAL = sys.argv[1], sys.argv[2:] == ["real"]
V1, SUNNY = f"{URL}/v1", "It is sunny."
QUESTION = "What is the capital of France? Answer in one sentence."
"""Which a small model does, too."""
ASK = [{"role": "user", "content": QUESTION}]
TOO_LONG = "too long " * 4000


class City(BaseModel, extra="forbid"):
    """A place, and nothing more of it: a small model would go on until its answer is cut off."""

    city: Annotated[str, Field(max_length=12)]


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


STEPS: dict[str, Callable[[], Any]] = {}


def step(run: Callable[[], Any]) -> Callable[[], Any]:
    STEPS[run.__name__] = run
    return run


def with_a_real_model(run: Callable[[], Any]) -> Callable[[], Any]:
    """A step that asks for what the stand-in does not have."""
    return step(run) if REAL else run


def equal(found: Any, expected: Any) -> None:
    if not (_alike(found, expected) if REAL else found == expected):
        raise AssertionError(f"{found!r}, not {expected!r}")


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, BaseModel):
        return isinstance(found, type(expected)) and _alike(found.model_dump(), expected.model_dump())
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_alike(found[name], expected[name]) for name in expected)
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    return isinstance(found, type(expected))
