"""Masks are made ahead, on threads: as soon as a token is known, beside all that lies before the next one is drawn.

A mask that takes long holds up its own answer only. There are two threads, one of which is for grammars that were slow
before; it takes what nobody else wants of the CPUs. Each makes the masks of those first that have taken least so far.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from queue import SimpleQueue
from typing import Final

from headwater_engine.grammar.matcher import Matcher
from headwater_engine.grammar.priority import LAST, stand_back

PATIENCE: Final = 0.01
"""Seconds that a step waits for masks, at most; they are there as a rule."""
PATIENCE_WITH_SLOW: Final = 0.001
_HERE: Final = 0.003
"""Seconds of a step that the loop may make masks by itself; one more may come to this."""


class MaskMaker:
    """One loop owns it. `close` it at the end."""

    def __init__(self) -> None:
        self._quick, self._slow = _Lane("masks", gently=False), _Lane("slow masks", gently=True)

    def make(self, matchers: Sequence[Matcher]) -> None:
        """Each of which is `made` some time later."""
        for matcher in matchers:
            matcher.ask()
        for lane, slow in ((self._quick, False), (self._slow, True)):
            if own := [matcher for matcher in matchers if matcher.cost.slow is slow]:
                lane.take(own)

    def make_now(self, matchers: Sequence[Matcher]) -> None:
        """They are wanted at once. Most are made here: less work than to have a thread do it."""
        until = time.monotonic() + _HERE
        others = []
        for matcher in matchers:
            if matcher.cost.for_loop and time.monotonic() < until:
                matcher.ask()
                matcher.make()
            else:
                others.append(matcher)
        self.make(others)

    def wait(self, matchers: Iterable[Matcher]) -> None:
        """Until they are made, but for no longer than a step can bear."""
        now = time.monotonic()
        for matcher in matchers:
            if not matcher.made:
                until = now + (PATIENCE_WITH_SLOW if matcher.cost.slow else PATIENCE)
                for each in [*matcher.cost.making]:
                    each.wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        self._quick.close()
        self._slow.close()


class _Lane:
    """A thread, and what it has to do."""

    def __init__(self, name: str, *, gently: bool) -> None:
        self._gently = gently
        self._asked: SimpleQueue[Sequence[Matcher] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def take(self, matchers: Sequence[Matcher]) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._asked.put(matchers)

    def close(self) -> None:
        """What is not made by now is not made any more."""
        self._asked.put(None)

    def _run(self) -> None:
        if self._gently:
            stand_back(LAST)
        order = count()
        waiting: list[tuple[float, int, Matcher]] = []
        while True:
            while not waiting or not self._asked.empty():
                matchers = self._asked.get()
                if matchers is None:
                    return
                for matcher in matchers:
                    heappush(waiting, (matcher.seconds, next(order), matcher))
            heappop(waiting)[2].make()
