"""Whether a request that an endpoint did not answer may be tried on another one.

| outcome | another try | why no more |
|---|---|---|
| overloaded, unreachable, unsent, unsupported | as long as there are attempts | nothing was computed |
| denied, failed | one | what fails at two replicas says something about the request |
| lost, stale | one more send | a request that kills engines must not be carried through all of them |
| any of these, of the send after a loss | none | the same: it has had its one more |
| timed out, stalled | none | what was sent is not computed again because it was slow |

A kept connection that had been closed meanwhile is the ordinary case, and cannot be told from an endpoint that dies of
requests at once. So it is a loss, but one that costs nothing: no attempt, no pause, no place in the budget. The one
more send goes over a new connection (`upstream.pool`), to another endpoint where there is one, else to the same. What
is not sent is no send: where nobody is there, the next endpoint gets it. So no request is sent more often than it has
attempts, and once more.

A retry is load on top of the load that may have been the cause. So at most a fifth of the requests that are open may be
retries of what was computed once already. A failure beyond that is the answer; a loss, which took its engine's load
with it, waits for its turn.
"""

from collections.abc import Iterable
from typing import Final

from headwater.http.line import Line, NoRoomError
from headwater_router.outcome import Outcome
from headwater_router.sends import Sends

FREE: Final = frozenset((Outcome.OVERLOADED, Outcome.UNREACHABLE, Outcome.UNSENT, Outcome.UNSUPPORTED))
"""Nothing was computed: such a retry is no further load."""
ONCE: Final = frozenset((Outcome.DENIED, Outcome.FAILED, Outcome.LOST))

_SHARE: Final = 5
_LEAST: Final = 3
"""Retries that may always be open, or a quiet router could make none."""


def may_be_sent_again(outcome: Outcome, before: Iterable[Outcome | None], sends: Sends) -> bool:
    """By the table. `before`: what came of its stays before the one that ends with this outcome."""
    if sends.had_one_more:
        return False
    return outcome in FREE or outcome is Outcome.STALE or (outcome in ONCE and ONCE.isdisjoint(before))


class RetryBudget:
    """Retries that are open now."""

    def __init__(self) -> None:
        self.open_requests = 0
        """Of all kinds; the forwarder writes it."""
        self.retries = 0
        self._line = Line(self._has_room, self._count, self.give)

    def take(self) -> bool:
        """Count a retry if there is room for it. Whoever took is to `give` later."""
        if self._line or not self._has_room():
            return False
        self._count()
        return True

    async def wait(self, patience: float) -> bool:
        """As `take`, after all who wait already; False if there is no room within so many seconds."""
        if self.take():
            return True
        try:
            await self._line.wait(patience)
        except NoRoomError:
            return False
        return True

    def give(self) -> None:
        self.retries -= 1
        self._line.move()

    def _count(self) -> None:
        self.retries += 1

    def _has_room(self) -> bool:
        return self.retries < max(_LEAST, self.open_requests // _SHARE)
