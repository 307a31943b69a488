"""How many prompt tokens a step may have, so that no step takes too long.

Each running stream gets one token a step, so that what a step takes is what a client sees between two tokens: there may
be an objective for that. Without streams, too, a step should end within some seconds, since only between two steps can
somebody else come in, or leave. What a step takes is nearly `base + cost * prompt tokens`. Both are learned from the
steps themselves, and so follow the model, the machine and what else it does, the batch and the contexts.
"""

LEAST = 16
"""Prompt tokens that a step may have in any case: a prompt must come to its end, too."""
TRIAL = 64
"""Prompt tokens of the first steps, before it is known what one costs. That is a second, or two thousandths of one."""
LONGEST_STEP = 10.0
"""Seconds that a step should take at most, whatever runs."""
_AIM = 0.9
"""Of the objective: steps vary, and a token has to be sent."""
_WEIGHT = 0.2
"""Of the latest step in what is learned."""


class Pace:
    """Knows no clock: it is told what steps took."""

    def __init__(self, objective: float | None, most: int) -> None:
        """`objective`: seconds between two tokens of a stream, or none. `most`: tokens of a whole step."""
        self._objective = objective
        self._most = most
        self._base = 0.0
        self._cost: float | None = None
        self.kept = 0
        """Steps with running streams that took no longer than the objective."""
        self.missed = 0

    @property
    def prompt_tokens(self) -> int:
        """What a step with running streams may have of prompts."""
        wanted = LONGEST_STEP if self._objective is None else min(_AIM * self._objective, LONGEST_STEP)
        return self._within(wanted - self._base)

    @property
    def prompt_tokens_alone(self) -> int:
        """What a step without any stream may have."""
        return self._within(LONGEST_STEP)

    def _within(self, seconds: float) -> int:
        if self._cost is None:
            return min(TRIAL, self._most)
        if seconds <= 0:
            return min(LEAST, self._most)
        if seconds >= self._cost * self._most:
            return self._most
        return max(min(LEAST, self._most), int(seconds / self._cost))

    def learn(self, streams: int, prompt_tokens: int, seconds: float) -> None:
        """A step took so long, in which so many streams got a token."""
        if streams and self._objective is not None:
            self.kept += seconds <= self._objective
            self.missed += seconds > self._objective
        if prompt_tokens >= LEAST:
            if streams:
                self._base = min(self._base, seconds)  # it may have been learned when all was slower
            cost = (seconds - (self._base if streams else 0.0)) / prompt_tokens
            self._cost = cost if self._cost is None else _blend(self._cost, cost)
        elif streams:
            self._base = _blend(self._base, seconds) if self._base else seconds


def _blend(learned: float, latest: float) -> float:
    return (1 - _WEIGHT) * learned + _WEIGHT * latest
