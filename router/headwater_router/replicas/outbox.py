"""Answered prompts on their way to the other routers."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from headwater.tally import Count

MOST_BLOCKS: Final = 200_000
"""That wait: 100 MB of short prompts, or more of long ones, in some 10 MB of memory."""

Answered = tuple[str, Sequence[int]]
"""The target's id, and the chain of the prompt's text."""


class Outbox:
    """What Redis does not take is kept for later, up to a limit; then the oldest is dropped."""

    def __init__(self, dropped: Count, *, most_blocks: int = MOST_BLOCKS) -> None:
        self._dropped = dropped
        self._most_blocks = most_blocks
        self._waiting: deque[Answered] = deque()
        self._blocks = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, target_id: str, chain: Sequence[int]) -> None:
        """On the token path: nothing here waits, and nothing is looked up."""
        self._waiting.append((target_id, chain))
        self._blocks += len(chain)
        while self._blocks > self._most_blocks:
            self._blocks -= len(self._waiting.popleft()[1])
            self._dropped.inc()

    def take(self, blocks: int) -> list[Answered]:
        """The oldest, of so many blocks together at most, but one in any case if there is any."""
        taken: list[Answered] = []
        while self._waiting and (not taken or len(self._waiting[0][1]) <= blocks):
            taken.append(self._waiting.popleft())
            blocks -= len(taken[-1][1])
            self._blocks -= len(taken[-1][1])
        return taken
