"""Hermes 2 and 3, Qwen 2.5 and 3, and many others: JSON within tags.

<tool_call>
{"name": "weather", "arguments": {"city": "Bern"}}
</tool_call>
"""

from collections.abc import Sequence
from itertools import count
from typing import ClassVar

from headwater_engine.formats.functions import MORE, Function, Functions, Spelling, either
from headwater_engine.formats.json_call import call_schema, read_call
from headwater_engine.formats.parts import Content
from headwater_engine.formats.text import Reading, Text

_BEGIN, _END = "<tool_call>", "</tool_call>"


class Hermes:
    names: ClassVar = ("hermes", "qwen", "qwen25", "qwen2_5", "qwen3_json")
    markers: ClassVar = (_BEGIN, _END)
    trigger: ClassVar = _BEGIN

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        calls = count()
        index = next(calls)
        while (yield from text.pass_until(Content, _BEGIN)) is not None:
            text.mark()
            yield from text.skip_space()
            if (yield from read_call(text, index)):
                index = next(calls)
                yield from text.take_until(_END)
            else:
                yield Content(_BEGIN + text.since_mark())

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        call = f'"\\n" {either(map(call_schema, functions))} "\\n" {spell(_END)}'
        return "calls: call" + (f' ("\\n" {spell(_BEGIN)} call)' + MORE if many else "") + f"\ncall: {call}"
