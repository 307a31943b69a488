"""Mistral's: a list as JSON, or, since version 11 of its tokenizer, each name with its arguments behind it.

[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern"}}]
[TOOL_CALLS]weather[ARGS]{"city": "Bern"}
"""

import json
from collections.abc import Sequence
from itertools import count
from typing import ClassVar

from headwater_engine.formats.functions import MORE, Function, Functions, Spelling, arguments_of, either, schema
from headwater_engine.formats.json_call import call_schema, pass_arguments, read_call
from headwater_engine.formats.parts import Call, Content
from headwater_engine.formats.text import Reading, Text

_CALLS, _ARGS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class Mistral:
    names: ClassVar = ("mistral",)
    markers: ClassVar = (_CALLS, _ARGS, _ID)
    trigger: ClassVar = _CALLS

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        index = 0
        while (yield from text.pass_until(Content, _CALLS)) is not None:
            text.mark()
            first = yield from text.skip_space()
            before = index
            if first == "[":
                index = yield from self._list(text, index)
            elif first:
                index = yield from self._named(text, index)
            if index == before:
                yield Content(_CALLS + text.since_mark())

    def _list(self, text: Text, index: int) -> Reading[int]:
        """How many calls there are now."""
        yield from text.begins("[")
        for index in count(index):  # noqa: B020  # it counts on
            yield from text.skip_space()
            if not (yield from read_call(text, index)):
                return index
            if (yield from text.skip_space()) != ",":
                yield from text.begins("]")
                return index + 1
            yield from text.begins(",")
        raise AssertionError("it counts for ever")

    def _named(self, text: Text, index: int) -> Reading[int]:
        name, marker = yield from text.take_until(_ARGS, _ID, "{")
        if marker == _ID:
            _, marker = yield from text.take_until(_ARGS)
        if marker == "{":
            text.unread(marker)
        if marker is None or not name.strip():
            return index
        text.settle()
        yield Call(index, name.strip())
        yield from text.skip_space()
        yield from pass_arguments(text, index)
        return index + 1

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        if spell.token_of(_ARGS) is None:
            call = either(map(call_schema, functions))
            return 'calls: "[" call' + (' (", " call)' + MORE if many else "") + f' "]"\ncall: {call}'
        call = either(
            f"{json.dumps(each.name)} {spell(_ARGS)} {schema(arguments_of(each), strict=each.strict)}"
            for each in functions
        )
        return "calls: call" + (f" ({spell(_CALLS)} call)" + MORE if many else "") + f"\ncall: {call}"
