"""OpenAI's gpt-oss: an answer of several messages, each on a channel, some of them to functions.

    <|channel|>analysis<|message|>They want the weather.<|end|><|start|>assistant<|channel|>commentary
    to=functions.weather <|constrain|>json<|message|>{"city": "Bern"}<|call|>

Published as https://github.com/openai/harmony, with the format in docs/format.md. The prompt ends with
`<|start|>assistant`.
"""

import json
import re
from collections.abc import Sequence
from itertools import count
from typing import ClassVar, Final

from headwater_engine.formats.functions import Function, Functions, Spelling, arguments_of, either, schema
from headwater_engine.formats.parts import Arguments, Call, Content, Reasoning
from headwater_engine.formats.text import Reading, Text

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS: Final = ("<|end|>", "<|call|>", "<|return|>")
_TO: Final = re.compile(r"to=(functions\.)?([^\s<]+)")


class Harmony:
    """Reasoning and calls both, so that there is no Thinking beside it."""

    names: ClassVar = ("harmony", "openai", "gpt_oss", "gpt-oss", "openai_gptoss")
    markers: ClassVar = (_START, _CHANNEL, _MESSAGE, "<|constrain|>", *_ENDS)
    trigger: ClassVar = ""

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        calls = count()
        # What has no head is the answer itself: a model that was not asked in this way.
        first = yield from text.peek(4)
        if not first.startswith(("<", " to=")) and (yield from text.pass_until(Content, _START, _CHANNEL)) is None:
            return
        while True:
            head, marker = yield from text.take_until(_MESSAGE)
            if marker is None:
                return
            _, _, channel = head.rpartition(_CHANNEL)
            said: type[Content | Reasoning] = Reasoning if channel.strip().startswith("analysis") else Content
            to = _TO.search(head)
            if to is not None and (to[1] or to[2] in functions):
                yield from self._call(text, Call(next(calls), to[2]))
            elif to is not None and said is Content:
                # To a tool of OpenAI's own that nobody offered (`python`): not for the user, either.
                _, end = yield from text.take_until(*_ENDS, _START, _CHANNEL)
                if end is None:
                    return
                continue
            if (yield from text.pass_until(said, *_ENDS, _START, _CHANNEL)) is None:
                return

    def _call(self, text: Text, call: Call) -> Reading[None]:
        yield call
        if (yield from text.skip_space()) == "{":
            yield from text.pass_value(lambda piece: Arguments(call.number, piece))

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        """Of one call: the model ends its answer behind it."""
        each = either(
            f"{json.dumps(' to=functions.' + function.name + ' ')} {spell('<|constrain|>json<|message|>')} "
            f"{schema(arguments_of(function), strict=function.strict)}"
            for function in functions
        )
        return f"calls: {spell(_CHANNEL + 'commentary')} {each}"

    def before_form(self, spell: Spelling) -> str:
        """An expression of what comes before a form that only the last message has."""
        return spell(f"{_CHANNEL}final{_MESSAGE}")

    def thought(self, spell: Spelling, budget: str) -> str:
        """Rules, of which `thought` is the reasoning. `budget`: options of a rule."""
        begin, end = spell(f"{_CHANNEL}analysis{_MESSAGE}"), spell(f"<|end|>{_START}assistant")
        return f"thought: ({begin} inner {end})?\ninner{budget}: /(?s:.*)/\n"
