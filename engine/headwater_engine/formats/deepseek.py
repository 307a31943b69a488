"""DeepSeek's: V3 and R1 have each call's arguments in a block of Markdown, V3.1 right behind the name.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather
```json
{"city": "Bern"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Bern"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
"""

from collections.abc import Sequence
from itertools import count
from typing import ClassVar

from headwater_engine.formats.functions import MORE, Function, Functions, Spelling, arguments_of, either, schema
from headwater_engine.formats.json_call import pass_arguments
from headwater_engine.formats.parts import Call, Content
from headwater_engine.formats.text import Reading, Text

_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"


class _DeepSeek:
    markers: ClassVar = (_ALL, _ALL_END, _ONE, _ONE_END, _SEPARATOR)
    trigger: ClassVar = _ALL
    _named: ClassVar[str]
    """What a call begins with."""
    _begin: ClassVar[str]
    """Before its arguments."""
    _end: ClassVar[str]

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        calls = count()
        while (yield from text.pass_until(Content, _ALL)) is not None:
            while (yield from text.skip_space()) and (yield from text.begins(_ONE)):
                yield from self._call(text, next(calls))
                yield from text.take_until(_ONE_END)
            yield from text.begins(_ALL_END)

    def _name(self, text: Text) -> Reading[tuple[str, str | None]]:
        """And what ended it."""
        return (yield from text.take_until(_SEPARATOR))

    def _call(self, text: Text, index: int) -> Reading[None]:
        name, end = yield from self._name(text)
        if end is None:
            return
        yield Call(index, name.strip())
        if (yield from text.skip_space()) == "`":
            yield from text.take_until("\n")
            yield from text.skip_space()
        yield from pass_arguments(text, index)

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        each = either(
            f"{spell(self._named + function.name)} {spell(self._begin)} "
            f"{schema(arguments_of(function), strict=function.strict)} {spell(self._end)}"
            for function in functions
        )
        call = f"{spell(_ONE)} {each} {spell(_ONE_END)}"
        again = ' ("\\n"? call)' + MORE if many else ""
        return f"calls: call{again} {spell(_ALL_END)}\ncall: {call}"


class DeepSeekV3(_DeepSeek):
    names: ClassVar = ("deepseek_v3", "deepseekv3")
    _named: ClassVar = f"function{_SEPARATOR}"
    _begin: ClassVar = "\n```json\n"
    _end: ClassVar = "\n```"

    def _name(self, text: Text) -> Reading[tuple[str, str | None]]:
        name, end = yield from text.take_until(_SEPARATOR)
        if end is None or name.strip() != "function":
            return name, end
        return (yield from text.take_until("\n"))


class DeepSeekV31(_DeepSeek):
    names: ClassVar = ("deepseek_v31", "deepseekv31")
    _named: ClassVar = ""
    _begin: ClassVar = _SEPARATOR
    _end: ClassVar = ""
