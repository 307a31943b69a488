"""A call as a JSON object, `{"name": ..., "arguments": {...}}`, which most formats have in one way or another."""

import json
from collections.abc import Container
from typing import Final

from headwater_engine.formats.functions import ROOT, Function, arguments_of, definitions_of, schema
from headwater_engine.formats.parts import Arguments, Call
from headwater_engine.formats.text import Reading, Text

_NAMES: Final = ("name", "function")
_ARGUMENTS: Final = ("arguments", "parameters")


def read_call(text: Text, index: int, known: Container[str] | None = None) -> Reading[bool]:
    """Whether there is one, up to its end or that of the text. Where there is none, some was read, and nothing said.

    Arguments go out as they come, once the name is known; then the caller's mark is gone. `known`: where given, other
    names make no call.
    """
    name: str | None = None
    held: str | None = None
    bare = True
    if not (yield from text.begins("{")):
        return False
    while (yield from text.skip_space()) == '"':
        key = _string((yield from text.take_value()))
        if (yield from text.skip_space()) != ":":
            break
        yield from text.begins(":")
        yield from text.skip_space()
        if key in _ARGUMENTS and name is not None:
            bare = False
            yield from pass_arguments(text, index)
        else:
            value = yield from text.take_value()
            if key in _NAMES and name is None and (name := _string(value)) is not None:
                if known is not None and name not in known:
                    return False
                text.settle()
                yield Call(index, name)
                if held is not None:
                    bare = False
                    yield Arguments(index, arguments_in(held))
            elif key in _ARGUMENTS:
                held = value
        if (yield from text.skip_space()) != ",":
            break
        yield from text.begins(",")
    if (yield from text.begins("}")) and name is not None and bare:
        yield Arguments(index, "{}")
    return name is not None


def pass_arguments(text: Text, index: int) -> Reading[bool]:
    """A JSON object as it comes; one that was written into a string, once all of it is there. Whether it ended."""
    if (yield from text.peek(1)) != '"':
        return (yield from text.pass_value(lambda piece: Arguments(index, piece)))
    value = yield from text.take_value()
    if value is not None:
        yield Arguments(index, arguments_in(value))
    return value is not None


def arguments_in(value: str) -> str:
    """JSON that was written into a JSON string, as it was before that."""
    inner = _string(value)
    return value if inner is None else inner


def _string(value: str | None) -> str | None:
    if value is None or not value.startswith('"'):
        return None
    try:
        return str(json.loads(value, strict=False))
    except ValueError:
        return None


def call_schema(function: Function, arguments: str = "arguments") -> str:
    """An expression of a grammar that matches a call. `arguments`: the name that the format has for them."""
    parameters = arguments_of(function)
    definitions = definitions_of(parameters)
    properties = {"name": {"const": function.name}, arguments: {"$ref": ROOT} if definitions else parameters}
    return schema(
        {
            **definitions,
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
        strict=function.strict,
    )
