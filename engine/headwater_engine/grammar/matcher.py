"""One answer that is held to a grammar: which tokens may come next, and whether it is complete.

llguidance walks the vocabulary's tree of bytes beside an Earley parser, so that a mask costs some microseconds, and a
grammar needs no table of all its states beforehand.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Final

import numpy as np
from llguidance import LLMatcher

_MOST_SECONDS: Final = 2.0
"""Of CPU for the masks of one answer: some take a millisecond, most a few microseconds. Others wait meanwhile."""


_STATE: Final = re.compile("<state>|<non-verbose/>")


class GrammarError(Exception):
    """What is wrong with a grammar, or with this answer's way through it, in a sentence for the client."""


class Matcher:
    """Not thread-safe. After a GrammarError it is of no use."""

    def __init__(self, matcher: LLMatcher, words: int, rows: int) -> None:
        """`words`: 32-bit words of a mask as llguidance writes it. `rows`: of the model, which has no tokens behind."""
        self._matcher = matcher
        self._rows = rows
        self._row = np.zeros(words, dtype=np.int32)
        self._seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing may follow any more."""
        return bool(self._matcher.is_stopped())

    def fill(self, row: np.ndarray) -> None:
        """The tokens that may come next, as bits of [words] int32, as in `kernels.interface.Masks`.

        Raises GrammarError.
        """
        with self._counted():
            self._matcher.unsafe_compute_mask_ptr(self._row.ctypes.data, self._row.nbytes)
        row[:] = self._row[: len(row)]

    def forced(self) -> list[int]:
        """What comes next where only one text may: as the tokenizer writes it, as far as what follows changes nothing.

        `fill` allows the first of them only, so they are the tokens that would be drawn. Raises GrammarError.
        """
        with self._counted():
            tokens = self._matcher.compute_ff_tokens()
        return list(takewhile(lambda token: token < self._rows, tokens))

    def advance(self, token: int) -> None:
        """The answer goes on with `token`, which the mask allowed. Raises GrammarError."""
        self._matcher.consume_token(token)
        self._check()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        began = time.thread_time()
        yield
        self._seconds += time.thread_time() - began
        self._check()
        if self._seconds > _MOST_SECONDS:
            raise GrammarError(f"it took more than {_MOST_SECONDS:.0f} seconds to say which tokens may come next")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(short(self._matcher.get_error()))


def short(error: str) -> str:
    """What llguidance says, as one line; the state of its parser, which may follow, is not for clients."""
    said = " ".join(_STATE.split(error, maxsplit=1)[0].split()).rstrip(".")
    if said.startswith("NoExtension"):
        return "no text is of this form"
    return said[:400] or "it cannot be used"
