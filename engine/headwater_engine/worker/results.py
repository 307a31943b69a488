"""What came home of a step, as its result."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from torch import Tensor

from headwater_engine.core.step import Result, Span, Step
from headwater_engine.kernels.interface import Scores
from headwater_engine.sampling.logprobs import listed
from headwater_engine.sampling.sampler import Drawn, Sampled


@dataclass(slots=True)
class Outcome:
    """All that a step has given. Its tensors are on the device, and later the same ones at home."""

    draws: list[tuple[Sequence[int], Drawn]]
    """Rows of logits, and what was drawn from them."""
    scores: list[tuple[int, Scores]]
    """Places in `Step.spans`, and what prompts score there, in the order of their tokens."""

    def tensors(self) -> list[Tensor]:
        drawn = [each for _, draw in self.draws for each in (draw.tokens, *(draw.scores or ()))]
        return drawn + [each for _, scores in self.scores for each in scores]

    def at_home(self, tensors: Sequence[Tensor]) -> "Outcome":
        """The same of such tensors."""
        rest = iter(tensors)
        draws = []
        for rows, draw in self.draws:
            draws.append((rows, Drawn(next(rest), None if draw.scores is None else _scores(rest), draw.wanted)))
        return Outcome(draws, [(place, _scores(rest)) for place, _ in self.scores])

    def result(self, step: Step, silent: Set[int]) -> Result:
        """`silent`: seats that give no token."""
        sampled: dict[int, Sampled] = {}
        for rows, draw in self.draws:
            sampled.update(zip(rows, draw.results(), strict=True))
        result = accept(step.spans, dict(step.drafts), [sampled[row] for row in range(len(sampled))], silent)
        for place, scores in self.scores:
            result.prompt_logprobs.setdefault(place, []).extend(listed(scores))
        return result


def _scores(tensors: Iterator[Tensor]) -> Scores:
    return Scores(*(next(tensors) for _ in Scores._fields))


def accept(
    spans: Sequence[Span], drafts: dict[int, list[int]], sampled: Sequence[Sampled], silent: Set[int] = frozenset()
) -> Result:
    """Drafts hold as long as they are what is sampled in their place; behind them comes one token more.

    So an answer is the same with drafts and without.
    """
    result = Result([])
    at = 0
    for place, span in enumerate(spans):
        tokens: list[int] = []
        rows, at = sampled[at : at + span.sampled], at + span.sampled
        if span.seat in silent:
            rows = []
        for row, guess in zip(rows, [*drafts.get(span.seat, ()), None], strict=False):
            if row.error is not None:
                result.errors[place] = row.error
                break
            tokens.append(row.token)
            if row.logprobs is not None:
                result.logprobs.setdefault(place, []).append(row.logprobs)
            if row.token != guess:
                break
        result.tokens.append(tokens)
    return result
