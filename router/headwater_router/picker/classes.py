"""Of which class a request is, where several deployments could answer it and one kind of engine may suit it better.

What is asked for is in the body; what is shared the prefix index knows. How much of a *conversation's* prompt is
cached says little: with its second turn nearly all of it is. So what counts is how conversations begin, and not of each
by itself but of an application, which is known by the beginning of its prompts. It is of one class, so a conversation
is of one class from its first turn to its last, and for all routers that know as much.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Final, NamedTuple

from msgspec import Raw

from headwater.prefix import ENDS
from headwater_router.gateway.body import Body
from headwater_router.picker.base import Prompt

_HALF: Final = 0.5
"""Of the tokens that its conversations begin with, an application must share so much,"""
_LEAST: Final = 256.0
"""and so many of each."""
_LET_GO: Final = 0.8
"""Of both, below which one that had shared so much does not any more."""
_LONG: Final = 8192.0
"""Tokens with which a long conversation begins."""
_MEMORY: Final = 0.9
"""What the weight of a conversation becomes with the next one of its application."""
_MOST_APPLICATIONS: Final = 4096

_by_user: Final = re.compile(rb'"role"(?<!\\"role")\s*+:\s*+"user"').search
_by_model: Final = re.compile(rb'"role"(?<!\\"role")\s*+:\s*+"(?:assistant|tool|function)"').search
"""In JSON, where no text can imitate either: there the quotes are escaped."""
_constraints: Final = attrgetter(
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "json_schema",
    "regex",
    "ebnf",
)
_formats: Final = attrgetter("response_format", "text")
_typed: Final = re.compile(rb'"type"\s*+:').search
_free: Final = re.compile(rb'"type"\s*+:\s*+"text"').search
_NULL: Final = Raw(b"null")


class Kind(StrEnum):
    """The class of a request, which Python has taken the name of."""

    STRUCTURED = "structured"
    """Its answer is to follow a schema or a grammar."""
    SHARED = "shared"
    """Of an application whose conversations begin with what is cached already."""
    LONG = "long"
    """Of a conversation that begins with much."""
    PLAIN = "plain"


class Traits(NamedTuple):
    """What a body says of it."""

    structured: bool = False
    opening: float = 1.0
    """Share of the prompt up to the model's first answer in it."""

    @property
    def begins(self) -> bool:
        """Whether a conversation begins with it."""
        return self.opening == 1.0


ORDINARY: Final = Traits()
"""Of what asks for nothing special, and goes on with nothing."""


def traits(body: Body) -> Traits:
    items = memoryview(body.messages or body.input)
    said = _by_user(items)
    answer = _by_model(items, said.end()) if said is not None else None
    return Traits(_structured(body), answer.start() / len(items) if answer is not None else 1.0)


def _structured(body: Body) -> bool:
    if any(raw and raw != _NULL for raw in _constraints(body)):
        return True
    return any(_typed(raw) and not _free(raw) for raw in map(bytes, _formats(body)))


@dataclass(slots=True)
class _Application:
    conversations: float = 0.0
    """Those that have begun; each counts for less with each further one. So for the next two."""
    tokens: float = 0.0
    """That they began with."""
    held: float = 0.0
    """Of these, those that were cached somewhere."""
    shares: bool = False

    def begin(self, tokens: float, held: float) -> None:
        self.conversations = _MEMORY * self.conversations + 1
        self.tokens = _MEMORY * self.tokens + tokens
        self.held = _MEMORY * self.held + held
        enough = _LET_GO if self.shares else 1.0
        self.shares = self.held >= enough * _HALF * self.tokens and self.held >= enough * _LEAST * self.conversations


class Applications:
    """Those of one model."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, _Application] = OrderedDict()
        """By the hash of the first block of their prompts, the longest unheard of first."""

    def kind(self, prompt: Prompt, told: Traits, held: int) -> Kind:
        """`held`: leading blocks of its text that some endpoint should hold."""
        if told.structured:
            return Kind.STRUCTURED
        tokens = told.opening * prompt.tokens
        if prompt.text_chain and self._shares(
            prompt.text_chain[0], told, tokens, ENDS[held] * prompt.text_block_tokens
        ):
            return Kind.SHARED
        return Kind.LONG if tokens >= _LONG else Kind.PLAIN

    def _shares(self, beginning: int, told: Traits, tokens: float, held: float) -> bool:
        found = self._known.get(beginning)
        if not told.begins:
            return found is not None and found.shares
        if found is None:
            found = self._known[beginning] = _Application()
            if len(self._known) > _MOST_APPLICATIONS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(beginning)
        found.begin(tokens, min(held, tokens))
        return found.shares
