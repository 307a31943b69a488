"""How fast an endpoint is, learned from the first bytes of its answers.

The model has two terms: `seconds = seconds_per_token * tokens + seconds_per_answer * answers`. Tokens are all that the
endpoint had to compute until this first byte: the prompt's own uncached ones and those queued before it. Answers stand
for what does not grow with the prompts, a step's fixed cost and the decodes that share the steps: the answers in
progress, the request's own being one, times the prompts until then.

What is fitted is so the very sum that is predicted with. An engine that computes many prompts at once shows a high
speed under load, and only there, where it has it.

Both terms are fitted by least squares over samples that fade, each weighted by the inverse square of its size so that
one long prompt does not outweigh a hundred short ones. A prior sample keeps the fit solvable from the first answer
on. A sample far above the prediction (a compilation, a swap, a stall) or far below it (a prompt that was cached without
our knowing) counts only as a multiple or a fraction of it: an endpoint that is really slower or quicker is believed
after a few answers, one oddity is not.

Where all samples are alike, the two terms cannot be told apart, and the fit may give all the time to the answers. Were
it believed, a prefix would be worth nothing. So the tokens keep a part of the time at least, and no engine is taken to
compute more than a million of them a second.
"""

from dataclasses import dataclass
from typing import Final

DEFAULT_SECONDS_PER_TOKEN: Final = 1 / 4000
DEFAULT_SECONDS_PER_ANSWER: Final = 0.010

_MEMORY: Final = 0.96
"""What a sample's weight becomes with each further one."""
_PRIOR_TOKENS: Final = 128
_SURPRISE: Final = 8.0
_SURPRISE_SECONDS: Final = 0.25
_FASTEST: Final = 1e-6
"""Seconds a token, below which a fit is an artefact."""
_LEAST_PART: Final = 0.05
"""Of the time, that is the tokens'."""


@dataclass(slots=True)
class Speed:
    """The fit for one endpoint; it stands on defaults alone while `samples` is 0."""

    samples: int = 0
    seconds_per_token: float = DEFAULT_SECONDS_PER_TOKEN
    seconds_per_answer: float = DEFAULT_SECONDS_PER_ANSWER
    learned_at: float = 0.0
    _tokens_tokens: float = 0.0
    _tokens_answers: float = 0.0
    _answers_answers: float = 0.0
    _tokens_seconds: float = 0.0
    _answers_seconds: float = 0.0

    def learn(self, tokens: float, answers: int, seconds: float, now: float) -> None:
        """A first byte came after `seconds`, with so many tokens and answers (see the module) until then."""
        predicted = self.seconds_per_token * tokens + self.seconds_per_answer * answers
        seconds = min(max(seconds, predicted / _SURPRISE), _SURPRISE * predicted + _SURPRISE_SECONDS)
        weight = 1.0 / (tokens + _PRIOR_TOKENS) ** 2
        self._tokens_tokens = _MEMORY * self._tokens_tokens + weight * tokens * tokens
        self._tokens_answers = _MEMORY * self._tokens_answers + weight * tokens * answers
        self._answers_answers = _MEMORY * self._answers_answers + weight * answers * answers
        self._tokens_seconds = _MEMORY * self._tokens_seconds + weight * tokens * seconds
        self._answers_seconds = _MEMORY * self._answers_seconds + weight * answers * seconds
        self._fit()
        self.samples += 1
        self.learned_at = now

    def _fit(self) -> None:
        prior_tokens, prior_answers = 0.02, 10.0 / _PRIOR_TOKENS**2
        a = self._tokens_tokens + prior_tokens
        b = self._tokens_answers
        d = self._answers_answers + prior_answers
        u = self._tokens_seconds + prior_tokens * DEFAULT_SECONDS_PER_TOKEN
        v = self._answers_seconds + prior_answers * DEFAULT_SECONDS_PER_ANSWER
        determinant = a * d - b * b
        per_token, per_answer = (u * d - v * b) / determinant, (v * a - u * b) / determinant
        least = max(_LEAST_PART * u / a, _FASTEST)
        if per_answer < 0:
            per_token, per_answer = u / a, 0.0
        elif per_token < least:
            per_token, per_answer = least, max((v - b * least) / d, 0.0)
        self.seconds_per_token, self.seconds_per_answer = max(per_token, _FASTEST), per_answer
