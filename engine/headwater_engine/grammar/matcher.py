"""One answer that is held to a grammar: which tokens may come next, and whether it is complete.

llguidance walks the vocabulary's tree of bytes beside an Earley parser, so that a mask costs some microseconds, and a
grammar needs no table of all its states beforehand. Some cost a thousand times as much, so masks are made on threads
(`grammar/ahead.py`), and what is left to the engine's loop has a bound of its own.
"""

import re
import threading
import time
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

import numpy as np
import structlog
from llguidance import LLMatcher

log = structlog.get_logger(__name__)

_MOST_SECONDS: Final = 2.0
"""Of CPU for the masks of one answer: some take 40 ms, most some microseconds."""
_MOST_FOLLOWING: Final = 0.05, 5e-4
"""Seconds of CPU that the loop, and so everybody, may spend on being told an answer's tokens: altogether, and more for
each of them. Most take 3 to 15 us, and where others have the caches and half of the clock, ten times that. And as much
on looking at tokens, before masks are made for them instead."""
_SLOW: Final = 5e-3
"""Seconds that a mask may take beside those that others wait for."""
_PROBATION: Final = 256
"""Masks after a slow one for which a grammar counts as slow."""
_GROWING: Final = 3e-4
"""Seconds from which on a mask has, most likely, built states that are kept."""
_PROVEN: Final = 16
"""Masks after which a grammar that was never slow counts as quick."""
_MOST_DOUBTED: Final = 16
_STATE: Final = re.compile(r"<state>|<non-verbose/>|\n *\d+ \| |; following special tokens are available")
"""Where what llguidance says ends, and the state of its parser, the grammar, or what else there is in it begins."""
_OWN_WORDS: Final = (
    (re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: "), ""),
    (re.compile(r"/\$defs/arguments\b"), ""),  # where a grammar of calls has a function's parameters
    (re.compile(r"Resource '(.*?)' is not present in a registry.*"), r"`\1` is not part of the schema"),
    (re.compile(r"(Value for '\w+' has too many digits): .*"), r"\1"),
)


class GrammarError(Exception):
    """What is wrong with a grammar, or with this answer's way through it, in a sentence for the client."""


@dataclass(slots=True, eq=False)
class Cost:
    """What the answers of one grammar have in common. They share what llguidance learns of it, behind one lock."""

    making: "set[Matcher]" = field(default_factory=set)
    """Whose masks are being made, or are to be: while there are any, none of the others may be told a token, since
    that would wait for them."""
    grown: float = 0.0
    """Seconds of masks that built states."""
    long: bool = False
    """Whether the grammar's text is: then a mask may take long although none did before."""
    broken: bool = False
    """Whether one has come to a limit of llguidance's, which may be of what they share: then none of them gets on."""
    _probation: int = 0
    _masks: int = 0
    _has_surprised: bool = False
    """One was slow, although the grammar counted as quick."""

    @property
    def quick(self) -> bool:
        """Whether tokens may be looked at in place of masks: many were made, and none was slow lately."""
        return self._masks >= _PROVEN and not self._probation

    @property
    def for_loop(self) -> bool:
        """Whether the loop itself may make its masks, for which everybody waits."""
        return self.quick and not self.long and not self._has_surprised

    @property
    def slow(self) -> bool:
        """Whether others should not wait for its masks."""
        return self._probation > 0

    def add(self, seconds: float) -> None:
        """One mask took as long."""
        self._has_surprised |= self.quick and seconds > _SLOW
        self._masks += 1
        self._probation = _PROBATION if seconds > _SLOW else max(0, self._probation - 1)
        if seconds > _GROWING:
            self.grown += seconds


class Matcher:
    """Not thread-safe: from `ask` until `made` it belongs to the thread that calls `make`.

    For each token a mask may be asked for, or else a token may be drawn without it, and `allows` be asked.
    After a GrammarError it is of no use.
    """

    def __init__(self, matcher: LLMatcher, cost: Cost, words: int, rows: int) -> None:
        """`words`: 32-bit words of a mask as llguidance writes it. `rows`: of the model, which has no tokens behind."""
        self.cost = cost
        self.asked = False
        """Whether there is a mask for the next token, or somebody is going to make it."""
        self.late = False
        """Whether a step went without its mask, since that was not made yet."""
        self.seconds = 0.0
        """Of CPU that its masks have taken."""
        self.following = 0.0
        """Of the loop's, that telling it tokens has taken."""
        self.looking = 0.0
        """Of the loop's, that looking at tokens has taken."""
        self._matcher = matcher
        self._rows = rows
        self._row = np.zeros(words, dtype=np.int32)
        self._address = self._row.ctypes.data
        self._told = 0
        self._made = threading.Event()
        self._refused = 0
        """Tokens that `allows` has refused in a row."""
        self._doubted = 1
        """Tokens, from the next one on, that would most likely be refused; the first seldom begins a form."""
        self._open = False
        """Whether it is known that no text is forced here."""
        self._taken: int | None = None
        """The token that `allows` has allowed."""
        self._error: GrammarError | None = None
        self._dropped = False

    @property
    def ended(self) -> bool:
        """Whether nothing may follow any more."""
        return bool(self._matcher.is_stopped())

    # The mask

    def ask(self) -> None:
        """Somebody is going to `make` the mask."""
        self._give_back()
        self.asked = True
        self._made.clear()
        self.cost.making.add(self)

    def make(self) -> None:
        """On any thread, which others need not wait for: the GIL is free meanwhile."""
        try:
            if not self._dropped:
                self._fill()
        except Exception as error:
            log.exception("a mask could not be made")
            self._error = GrammarError(f"the engine failed on it: {error}")
        finally:
            self.cost.making.discard(self)
            self._made.set()

    def _fill(self) -> None:
        began = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._address, self._row.nbytes)
        took = time.thread_time() - began
        self.seconds += took
        self.cost.add(took)
        self._error = self._found_wrong()

    def drop(self) -> None:
        """Nobody wants its mask any more."""
        self._dropped = True

    def wait(self, seconds: float) -> None:
        """Until the mask is made, if one was asked for, or not any longer than so."""
        if self.asked:
            self._made.wait(seconds)

    @property
    def made(self) -> bool:
        """Whether the mask is there, if one was asked for, and the next token may be told."""
        return (self._made.is_set() or not self.asked) and not self.cost.making

    def mask(self) -> np.ndarray:
        """The tokens that may come next, as bits of int32, as in `kernels.interface.Masks`, once it is `made`.

        Raises GrammarError.
        """
        if self._error is not None:
            raise self._error
        return self._row

    def _found_wrong(self) -> GrammarError | None:
        if self._matcher.is_error():
            self.cost.broken = True
            return GrammarError(short(self._matcher.get_error()))
        if self.seconds > _MOST_SECONDS:
            return GrammarError(f"it took more than {_MOST_SECONDS:.0f} seconds to say which tokens may come next")
        return None

    # What the loop tells it

    @property
    def doubted(self) -> bool:
        """Whether the next token's mask should be made before it is drawn, although it could be looked at then.

        Where several were refused in a row, so that little is drawn twice; or where looking has taken long.
        """
        return self._doubted > 0 or self._is_too_long(self.looking)

    def allows(self, token: int) -> bool:
        """Whether this token, which was drawn without a mask, may come next: just what the mask would say of it.

        Negative: none was. What is allowed is what `advance` is told next; where the step fails instead, another token
        may be looked at in its place. Raises GrammarError.
        """
        began = time.thread_time()
        if token != self._taken:
            self._give_back()
        # Taken at once: to look first and to take then would be the same work twice. Where only one text may come, a
        # mask has but the first of its tokens as the tokenizer writes it, and the matcher would take its letters, too.
        if self._taken is None and token >= 0:
            only = [] if self._open else self._matcher.compute_ff_tokens()[:1]
            if only in ([], [token]) and self._matcher.try_consume_tokens([token]):
                self._taken = token
        # It builds the states that a mask would have built, so it is counted as one.
        took = time.thread_time() - began
        self.seconds += took
        self.looking += took
        self.cost.add(took)
        if (error := self._found_wrong()) is not None:
            raise error
        allowed = self._taken is not None
        self._refused = 0 if allowed else self._refused + 1
        self._doubted = min(_MOST_DOUBTED, 2 ** (self._refused - 1)) if self._refused else 0
        return allowed

    def _give_back(self) -> None:
        """The token that was allowed has not come after all: the step failed, and is tried again."""
        if self._taken is not None:
            self._taken = None
            self._matcher.rollback(1)

    def forced(self) -> list[int]:
        """What comes next where only one text may: as the tokenizer writes it, as far as what follows changes nothing.

        A mask allows the first of them only, so they are the tokens that would be drawn. Raises GrammarError.
        """
        began = time.thread_time()
        tokens = self._matcher.compute_ff_tokens()
        self._open = not tokens
        self._count(began)
        return list(takewhile(lambda token: token < self._rows, tokens))

    def advance(self, token: int) -> None:
        """The answer goes on with `token`, which may come next. Raises GrammarError."""
        self._told += 1
        self.asked = self._open = False
        self._doubted = max(0, self._doubted - 1)
        if token == self._taken:
            self._taken = None
            return
        assert self._taken is None
        began = time.thread_time()
        self._matcher.consume_token(token)
        self._count(began)

    def _count(self, began: float) -> None:
        self.following += time.thread_time() - began
        if self._matcher.is_error():
            self.cost.broken = True
            raise GrammarError(short(self._matcher.get_error()))
        if self._is_too_long(self.following):
            raise GrammarError("it takes too long to follow which way the answer goes")

    def _is_too_long(self, seconds: float) -> bool:
        """Of the loop's."""
        altogether, each = _MOST_FOLLOWING
        return seconds > altogether + each * self._told


def short(error: str) -> str:
    """What llguidance says of a client's form, as one line."""
    said = " ".join(_STATE.split(error, maxsplit=1)[0].split()).rstrip(".")
    for theirs, ours in _OWN_WORDS:
        said = theirs.sub(ours, said)
    if said.startswith("NoExtension"):
        return "no text is of this form"
    return said[:400] or "it cannot be used"
