"""Reading what a client wrote: each value is what it has to be, or there is a sentence that names where it is not."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from headwater.openai.errors import BadRequestError
from headwater.validation import found

_MOST_MARKS: Final = 1 << 17
_MOST_BYTES: Final = 16 << 20
"""Of what is read whole, as Python's objects: the former are what costs. 500,000 tokens of text have a sixth."""


def check_size(*parts: bytes) -> None:
    """Raises BadRequestError for a conversation that is not read, in so many parts as JSON."""
    if (size := sum(map(len, parts))) > _MOST_BYTES:
        raise BadRequestError(f"The conversation has {size:,} bytes; allowed are {_MOST_BYTES:,} on this path.")
    if sum(part.count(b"[") + part.count(b"{") + part.count(b":") for part in parts) > _MOST_MARKS:
        raise BadRequestError(
            f"The conversation has more than {_MOST_MARKS:,} opening brackets and braces, and colons."
        )


def wrong(name: str, rule: str, value: Any) -> BadRequestError:
    return BadRequestError(f"`{name}` {rule}, found {found(value)}.", param=name)


def not_done(name: str, what: str) -> BadRequestError:
    return BadRequestError(f"`{name}`: {what} cannot be done here.", param=name, code="not_done_here")


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise wrong(name, "must be a text", value)
    return value


def an_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(name, "must be an object", value)
    return value


def objects(value: Any, name: str) -> Iterable[tuple[dict[str, Any], str]]:
    """Of a list, each with its place."""
    if not isinstance(value, list):
        raise wrong(name, "must be a list", value)
    for number, each in enumerate(value):
        place = f"{name}[{number}]"
        yield an_object(each, place), place


def flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(name, "must be true or false", value)
    return value


def none_of(values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises BadRequestError for what a client asks for and no chat completion can do."""
    for name in names:
        if values.get(name) not in (None, False, [], {}):
            raise not_done(name, "what this asks for")
