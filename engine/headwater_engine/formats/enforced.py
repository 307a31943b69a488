"""What of an answer a grammar enforces: calls, their arguments, the length of reasoning, a form behind it.

The grammars are in llguidance's dialect of Lark. Whatever they are made of, an answer is

    thought? ( content | trigger calls | form )

with the parts that a request allows; for harmony's channels, `harmony.py` has them in its own way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from msgspec import structs

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.formats.functions import Function, Spelling
from headwater_engine.formats.harmony import Harmony
from headwater_engine.formats.reader import Speech
from headwater_engine.formats.thinking import Thinking

_HEAD: Final = "%llguidance {}\n"
_ANY: Final = "/(?s:.*)/"


class Calling(StrEnum):
    """Whether functions are called."""

    NEVER = "never"
    MAYBE = "maybe"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of one answer, beside its content."""

    functions: Sequence[Function] = ()
    calling: Calling = Calling.NEVER
    many: bool = True
    """Whether it may hold more than one call."""
    form: Constraint | None = None
    """Of the content."""
    budget: int | None = None
    """Tokens of reasoning at most."""

    @property
    def holds_arguments(self) -> bool:
        """Whether arguments, or that there are some, must be enforced."""
        strict = self.calling is Calling.MAYBE and any(each.strict for each in self.functions)
        return strict or self.calling is Calling.ALWAYS


def enforced(wish: Wish, speech: Speech, spell: Spelling, *, is_open: bool) -> Constraint | None:
    """The grammar of the answer; None where there is nothing to enforce. `is_open`: it begins within reasoning.

    Where schemas of functions that are not strict cannot be enforced, it holds without them. Raises ValueError for a
    budget that cannot be kept.
    """
    held = _held(wish, speech, spell, is_open=is_open)
    if held is None or not wish.holds_arguments:
        return held
    loosened = replace(wish, functions=[each.loosened() for each in wish.functions])
    spare = _held(loosened, speech, spell, is_open=is_open)
    return held if spare == held else structs.replace(held, spare=spare)


def _held(wish: Wish, speech: Speech, spell: Spelling, *, is_open: bool) -> Constraint | None:
    reasons = speech.thinking is not None or speech.has_channels
    budget = wish.budget if reasons else None
    if not wish.holds_arguments and budget is None and not (wish.form is not None and reasons):
        return wish.form
    thought = _thought(speech, spell, budget, is_open=is_open)
    if wish.form is not None and wish.calling is not Calling.ALWAYS:
        lead = f"{_HEAD}start: thought ({_formed(wish, speech, spell)})\n{thought}{_calls(wish, speech, spell)}"
        return Constraint(wish.form.kind, wish.form.text, wish.form.lenient, lead)
    if wish.holds_arguments:
        text = f"{_HEAD}start: thought {_answer(wish, speech, spell)}{thought}{_calls(wish, speech, spell)}"
    else:
        text = f"{_HEAD}start: thought {_unheld(speech, spell)}\n{thought}"
    return Constraint(Kind.GRAMMAR, text)


def _thought(speech: Speech, spell: Spelling, budget: int | None, *, is_open: bool) -> str:
    """Rules, of which `thought` is the reasoning, or nothing."""
    limit = "" if budget is None else f"[max_tokens={budget}]"
    if isinstance(speech.calls, Harmony):
        return speech.calls.thought(spell, limit) if budget != 0 else 'thought: ""\n'
    if speech.thinking is None:
        return 'thought: ""\n'
    return _tagged_thought(speech.thinking, spell, budget, limit, is_open=is_open)


def _tagged_thought(thinking: Thinking, spell: Spelling, budget: int | None, limit: str, *, is_open: bool) -> str:
    begin, end = spell(thinking.begin), spell(thinking.end)
    inner = f"inner{limit}: {_ANY}\n"
    if spell.token_of(thinking.end) is None:
        if budget is not None:
            raise ValueError("this model's reasoning does not end with a token of its own")
        inner, end = f"inner[suffix={end}]: {_ANY}\n", ""
    thought = f"inner {end}" if budget != 0 else end
    gap = r"gap: /[ \n]{0,4}/" + "\n"
    if is_open:
        return f"thought: {thought} gap\n{inner}{gap}" if budget != 0 else f"thought: {thought} gap\n{gap}"
    return f"thought: ({begin} {thought} gap)?\n{inner}{gap}" if budget != 0 else 'thought: ""\n'


def _calls(wish: Wish, speech: Speech, spell: Spelling) -> str:
    """Rules, of which `calls` are those; none where none may be there."""
    if speech.calls is None or wish.calling is Calling.NEVER:
        return ""
    return speech.calls.grammar(wish.functions, spell, many=wish.many) + "\n"


def _formed(wish: Wish, speech: Speech, spell: Spelling) -> str:
    """An expression: the form, or calls instead."""
    form = "@form"
    if isinstance(speech.calls, Harmony):
        form = f"{speech.calls.before_form(spell)} @form"
    if speech.calls is None or wish.calling is Calling.NEVER:
        return form
    return f"{form} | {spell(speech.calls.trigger)} calls"


def _answer(wish: Wish, speech: Speech, spell: Spelling) -> str:
    """An expression and rules: calls, or, where they need not be, content as well."""
    assert speech.calls is not None
    trigger = speech.calls.trigger
    if wish.calling is Calling.ALWAYS:
        return f"{spell(trigger)} calls\n"
    if isinstance(speech.calls, Harmony):
        return f"({speech.calls.before_form(spell)} free | calls)\nfree: {_ANY}\n"
    if not trigger:
        return "(free | calls)\nfree: /([^{\\[\\s](?s:.*))?/\n"
    if spell.token_of(trigger) is not None:
        return f"free ({spell(trigger)} calls free)?\nfree: {_ANY}\n"
    # Content is what has no trigger in it, or calls could come unseen.
    rules = f"lead[suffix={spell(trigger)}]: {_ANY}\nrest: {_ANY}\nFREE: {_ANY} & ~({_ANY} {spell(trigger)} {_ANY})\n"
    return f"(FREE | lead calls rest)\n{rules}"


def _unheld(speech: Speech, spell: Spelling) -> str:
    """An expression: any tokens, but those that would begin reasoning again."""
    if isinstance(speech.calls, Harmony):
        return f"{spell('<|channel|>')} /final|commentary/ <[*]>*"
    assert speech.thinking is not None
    begin = spell.token_of(speech.thinking.begin)
    return "<[*]>*" if begin is None else f"<[^{begin}]>*"
