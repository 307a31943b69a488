"""Llama 3.1 and later: nothing but JSON, several of them with semicolons between.

{"name": "weather", "parameters": {"city": "Bern"}}; {"name": ...}
"""

from collections.abc import Sequence
from itertools import count
from typing import ClassVar

from headwater_engine.formats.functions import MORE, Function, Functions, Spelling, either
from headwater_engine.formats.json_call import call_schema, read_call
from headwater_engine.formats.parts import Content
from headwater_engine.formats.text import Reading, Text

_TAG = "<|python_tag|>"


class Llama3:
    names: ClassVar = ("llama3_json", "llama3", "llama4_json")
    markers: ClassVar = (_TAG,)
    trigger: ClassVar = ""

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        text.mark()
        first = yield from text.skip_space()
        text.back()
        if first != "{" and (yield from text.pass_until(Content, _TAG)) is None:
            return
        for index in count():
            text.mark()
            yield from text.skip_space()
            yield from text.begins(_TAG)
            yield from text.skip_space()
            if not (yield from read_call(text, index, functions)):
                # Any object may be an answer.
                yield Content(text.since_mark())
                yield from text.pass_until(Content, _TAG)
                return
            if (yield from text.skip_space()) not in (";", ",", "{"):
                break
            yield from text.begins(";")
            yield from text.begins(",")
        yield from text.pass_until(Content, _TAG)

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        call = either(call_schema(each, "parameters") for each in functions)
        return "calls: call" + (' ("; " call)' + MORE if many else "") + f"\ncall: {call}"
