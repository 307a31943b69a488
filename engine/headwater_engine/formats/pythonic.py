"""Calls as Python has them, in a list: Llama 3.2 and 4, and others.

[weather(city="Bern", days=2), clock()]
"""

import ast
import json
import re
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, ClassVar, Final

from headwater_engine.formats.functions import MORE, Function, Functions, Spelling, either, part_of, schema, written
from headwater_engine.formats.parts import Arguments, Call, Content
from headwater_engine.formats.text import Reading, Text

_BEGIN, _END = "<|python_start|>", "<|python_end|>"
_NAME: Final = re.compile(r"[A-Za-z_][\w.-]*")
_JSON_WORDS: Final = {"true": True, "false": False, "null": None}
_OPTIONAL: Final = 6
"""Arguments of a function of which none must be there: with more, any order of all of them would be too many ways."""


class Pythonic:
    names: ClassVar = ("pythonic", "llama4_pythonic", "llama4")
    markers: ClassVar = (_BEGIN, _END)
    trigger: ClassVar = ""

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        text.mark()
        yield from text.skip_space()
        yield from text.begins(_BEGIN)
        yield from text.skip_space()
        if not (yield from text.begins("[")):
            text.back()
            yield from text.pass_until(Content, _BEGIN, _END)
            return
        for index in count():
            if not (yield from self._call(text, functions, index)):
                yield Content(text.since_mark())
                break
            text.since_mark()
            text.mark()
            if (yield from text.skip_space()) != ",":
                yield from text.begins("]")
                text.since_mark()
                yield from text.skip_space()
                yield from text.begins(_END)
                break
            yield from text.begins(",")
        yield from text.pass_until(Content, _END)

    def _call(self, text: Text, functions: Functions, index: int) -> Reading[bool]:
        yield from text.skip_space()
        name, end = yield from text.take_until("(")
        name = name.strip()
        if end is None or _NAME.fullmatch(name) is None or name not in functions:
            return False
        inside, whole = yield from _until_closed(text)
        if not whole:
            yield Call(index, name)
            return True
        arguments = _arguments(inside, functions[name])
        if arguments is None:
            return False
        yield Call(index, name)
        yield Arguments(index, arguments)
        return True

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        call = either(f'{json.dumps(each.name + "(")} {_in_brackets(each)} ")"' for each in functions)
        return 'calls: "[" call' + (' (", " call)' + MORE if many else "") + f' "]"\ncall: {call}'


def _until_closed(text: Text) -> Reading[tuple[str, bool]]:
    """What comes before the bracket that closes the one before it, which is read, too; whether it came."""
    pieces: list[str] = []
    depth = 1
    while depth:
        piece, marker = yield from text.take_until("(", ")", '"', "'")
        pieces.append(piece)
        if marker is None:
            return "".join(pieces), False
        depth += {"(": 1, ")": -1}.get(marker, 0)
        if depth:
            pieces.append(marker)
        if marker in ('"', "'"):
            pieces.append((yield from _string(text, marker)))
    return "".join(pieces), True


def _string(text: Text, quote: str) -> Reading[str]:
    pieces: list[str] = []
    while True:
        piece, marker = yield from text.take_until(quote, "\\")
        pieces += [piece, marker or ""]
        if marker != "\\":
            return "".join(pieces)
        escaped = yield from text.peek(1)
        yield from text.begins(escaped)
        pieces.append(escaped)


def _arguments(inside: str, function: Function) -> str | None:
    """As JSON; None where it is not Python, or more than values."""
    try:
        call = ast.parse(f"f({inside}\n)", mode="eval").body
        if not isinstance(call, ast.Call):
            return None
        values = dict(zip(function.properties, map(_value, call.args), strict=False))
        values |= {each.arg: _value(each.value) for each in call.keywords if each.arg is not None}
        return written(values)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Name(word) if word in _JSON_WORDS:
            return _JSON_WORDS[word]
        case ast.List(items) | ast.Tuple(items):
            return [_value(each) for each in items]
        case ast.Dict(keys, values) if None not in keys:
            return {str(_value(key)): _value(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case _:
            return ast.literal_eval(node)


def _in_brackets(function: Function) -> str:
    """Arguments in the schema's order, those that must be there first; values as JSON, which is read, too."""
    needed = [name for name in function.properties if name in function.required]
    others = [name for name in function.properties if name not in function.required]

    def argument(name: str) -> str:
        value = part_of(function.parameters, function.properties[name])
        return f"{json.dumps(name + '=')} {schema(value, strict=function.strict)}"

    if needed:
        return f'{_listed(map(argument, needed))} {" ".join(f"""(", " {argument(each)})?""" for each in others)}'
    others = others[:_OPTIONAL]
    ways = []
    for first in range(len(others)):
        rest = " ".join(f'(", " {argument(each)})?' for each in others[first + 1 :])
        ways.append(f"{argument(others[first])} {rest}")
    return f"{either(ways)}?" if ways else ""


def _listed(expressions: Iterable[str]) -> str:
    return ' ", " '.join(expressions)
