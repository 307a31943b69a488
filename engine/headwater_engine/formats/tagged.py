"""Calls whose arguments each stand within tags, without quotes: Qwen3-coder's XML, and DSML of DeepSeek V3.2 and later.

    <tool_call>                          <｜DSML｜function_calls>
    <function=weather>                   <｜DSML｜invoke name="weather">
    <parameter=city>                     <｜DSML｜parameter name="city" string="true">Bern</｜DSML｜parameter>
    Bern                                 </｜DSML｜invoke>
    </parameter>                         </｜DSML｜function_calls>
    </function>
    </tool_call>

Such an argument is text or JSON; which of them, the function's schema says, or the tag.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

from headwater_engine.formats.functions import (
    MORE,
    Function,
    Functions,
    Members,
    Spelling,
    as_json,
    either,
    part_of,
    schema,
    takes_text,
    written,
)
from headwater_engine.formats.parts import Arguments, Call, Content
from headwater_engine.formats.text import Reading, Text


class Qwen3Coder:
    names: ClassVar = ("qwen3_coder", "qwen3_xml")
    markers: ClassVar = ("<tool_call>", "</tool_call>")
    trigger: ClassVar = "<tool_call>"

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        calls = count()
        # Some leave the outer tag out.
        while marker := (yield from text.pass_until(Content, "<tool_call>", "<function=")):
            text.mark()
            if marker == "<tool_call>":
                yield from text.skip_space()
            if marker == "<function=" or (yield from text.begins("<function=")):
                text.since_mark()
                yield from self._call(text, functions, next(calls))
                yield from text.skip_space()
                yield from text.begins("</tool_call>")
            else:
                yield Content(marker + text.since_mark())

    def _call(self, text: Text, functions: Functions, index: int) -> Reading[None]:
        name, end = yield from text.take_until(">", "\n")
        if end is None:
            return
        yield Call(index, name)
        function, members = functions.get(name), Members()
        while (yield from text.skip_space()) and (yield from text.begins("<parameter=")):
            key, end = yield from text.take_until(">")
            value = yield from _tagged_value(text)
            if value is None:
                return
            yield Arguments(index, members.member(key, as_json(function, key, value)))
        if (yield from text.begins("</function>")):
            yield Arguments(index, members.end())

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        each = []
        for function in functions:
            head = json.dumps(f"<function={function.name}>\n", ensure_ascii=False)
            each.append(" ".join([head, *_arguments(function, "<parameter={}>\n", "\n</parameter>\n")]))
        call = f'"\\n" {either(each)} "</function>\\n" {spell("</tool_call>")}'
        again = f' ("\\n" {spell(self.trigger)} call)' + MORE if many else ""
        return f"calls: call{again}\ncall: {call}\n" + _text_rule("\n</parameter>\n")


def _tagged_value(text: Text) -> Reading[str | None]:
    """An argument up to its end, which is read, too; None where that did not come.

    Of a value on lines of its own only a tag at the beginning of a line is its end: others are part of it. Some models
    forget that tag; then the next one of the call ends it.
    """
    if (yield from text.peek(1)) != "\n":
        value, end = yield from text.take_until("</parameter>", "</function>")
        value = value.removesuffix("\n")
    else:
        value, end = yield from text.take_until("\n</parameter>", "\n</function>", "\n<parameter=")
        value = value.removeprefix("\n")
    if end is not None and "</parameter>" not in end:
        text.unread(end)
    return None if end is None else value


class _DSML:
    """Versions differ in what stands within the tags."""

    markers: ClassVar = ("｜DSML｜",)
    trigger: ClassVar[str]
    _mark: ClassVar = "｜DSML｜"

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        calls = count()
        while (yield from text.pass_until(Content, self.trigger)) is not None:
            while (yield from text.skip_space()) and (yield from text.begins(f'<{self._mark}invoke name="')):
                name, end = yield from text.take_until('">', '"/>')
                if end == '">':
                    yield from self._call(text, functions.get(name), Call(next(calls), name))
                elif end is not None:
                    index = next(calls)
                    yield from (Call(index, name), Arguments(index, "{}"))
            yield from text.begins(self._end_of_all)

    def _call(self, text: Text, function: Function | None, call: Call) -> Reading[None]:
        yield call
        members = Members()
        while (yield from text.skip_space()) and (yield from text.begins(f'<{self._mark}parameter name="')):
            head, _ = yield from text.take_until(">")
            value, end = yield from text.take_until(f"</{self._mark}parameter>")
            if end is None:
                return
            key, _, kind = head.partition('"')
            is_text = 'string="true"' in kind
            yield Arguments(call.number, members.member(key, written(value) if is_text else as_json(None, key, value)))
        if (yield from text.begins(f"</{self._mark}invoke>")):
            yield Arguments(call.number, members.end())

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        end = f"</{self._mark}parameter>\n"
        tag = f'<{self._mark}parameter name="{{}}" string="{{}}">'
        each = []
        for function in functions:
            head = json.dumps(f'<{self._mark}invoke name="{function.name}">\n', ensure_ascii=False)
            each.append(" ".join([head, *_arguments(function, tag, end)]))
        call = f'{either(each)} "</{self._mark}invoke>\\n"'
        again = " call" + MORE if many else ""
        return f'calls: "\\n" call{again} "{self._end_of_all}"\ncall: {call}\n' + _text_rule(end)

    @property
    def _end_of_all(self) -> str:
        return self.trigger.replace("<", "</")


class DSML(_DSML):
    names: ClassVar = ("deepseek_v32", "deepseekv32", "dsml")
    trigger: ClassVar = "<｜DSML｜function_calls>"


class DSMLOfV4(_DSML):
    names: ClassVar = ("deepseek_v4", "deepseekv4")
    trigger: ClassVar = "<｜DSML｜tool_calls>"


class DSMLOfV41(_DSML):
    names: ClassVar = ("deepseek_v41", "deepseekv41")
    trigger: ClassVar = "<｜DSML｜ calls>"
    _mark: ClassVar = "｜DSML｜ "


def _arguments(function: Function, tag: str, end: str) -> Iterator[str]:
    """An expression for each, in the schema's order. `tag`: with places for its name, and for whether it is text."""
    for name, value in function.properties.items():
        is_text = bool(takes_text(function, name))
        begin = json.dumps(tag.format(name, str(is_text).lower()), ensure_ascii=False)
        part = part_of(function.parameters, value)
        argument = f"{begin} {_value(part, end, is_text=is_text, strict=function.strict)}"
        yield argument if name in function.required else f"({argument})?"


def _value(value: Mapping[str, Any], end: str, *, is_text: bool, strict: bool) -> str:
    closing = json.dumps(end, ensure_ascii=False)
    if not is_text:
        return f"{schema(value, strict=strict)} {closing}"
    choices = value.get("enum", [value["const"]] if "const" in value else [])
    return f"{either(map(written, choices))} {closing}" if choices else "text"


def _text_rule(end: str) -> str:
    return f"text[suffix={json.dumps(end, ensure_ascii=False)}]: /(?s:.*)/\n"
