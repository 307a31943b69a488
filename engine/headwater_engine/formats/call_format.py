"""What each format of calls gives."""

from collections.abc import Sequence
from typing import Protocol

from headwater_engine.formats.functions import Function, Functions, Spelling
from headwater_engine.formats.text import Reading, Text


class CallFormat(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """Of `--tool-call-parser`: ours first, then those that other servers have for it."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are tokens of their own in some tokenizers; special ones perhaps, which are seen all the same."""

    @property
    def trigger(self) -> str:
        """What calls begin with, wherever they stand in an answer; empty where they are all of it."""

    def read(self, text: Text, functions: Functions) -> Reading[None]:
        """All of an answer: calls, and the content around them. What turns out to be no call is content."""

    def grammar(self, functions: Sequence[Function], spell: Spelling, *, many: bool) -> str:
        """Rules, in llguidance's Lark, of which `calls` is what comes behind `trigger`. `many`: more than one may."""
