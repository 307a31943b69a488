"""What an engine tells of the time of its tokens, as another measure of its speed than our own answers.

Its histogram counts all answers, whoever asked for them. Between two looks at it, the mean time from one token to the
next says how many steps an answer had in that time, and what there was to do in them is known as of any other stretch
(`picker.speed`). That teaches the engine's factor each second, and sooner than answers that come as a whole, of which
the first tells something when it is over. It does not teach the costs, of which each look would be a mean over much.
"""

from typing import Final

from headwater.backends.metrics import TokenTimes
from headwater_router.picker.speed import Stretch

_LEAST_SECONDS: Final = 0.2
"""Between two looks; of less, what it has counted late would be too much,"""
_MOST_SECONDS: Final = 10.0
"""and of more, the mean of what was there says too little."""
_LEAST_TOKENS: Final = 16.0
_QUICKEST: Final = 1e-5
"""Seconds from one token to the next; less is not believed, and neither is more than"""
_SLOWEST: Final = 60.0


class Heard:
    """Of one engine."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: TokenTimes | None = None

    def steps(self, times: TokenTimes | None, seconds: float) -> float:
        """That an answer had since the last look, so many seconds ago; 0: nothing can be said."""
        before, self._times = self._times, times
        if times is None or before is None or not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
            return 0.0
        taken, tokens = times.seconds - before.seconds, times.tokens - before.tokens
        # A server that began anew counts from 0.
        if tokens < _LEAST_TOKENS or not _QUICKEST * tokens <= taken <= _SLOWEST * tokens:
            return 0.0
        return seconds * tokens / taken


def stretch_of(steps: float, answers: float, context: float, tokens: float) -> Stretch:
    """Of one of the answers there. `answers` and `context`, the tokens of their prompts: on average; `tokens`: of the
    prompts that were computed meanwhile."""
    others = max(0.0, answers - 1)
    return Stretch(0.0, steps, others * steps, context * others / max(answers, 1.0) * steps, tokens)
