"""Chooses one token a row: `kernels.sample` does, this adds the log-probabilities that rows ask for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.kernels.interface import Kernels
from headwater_engine.sampling.logprobs import Scores, score
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import SamplingRows


class Sampled(NamedTuple):
    token: int
    logprobs: TokenLogprobs | None
    error: str | None = None
    """Instead of a token: what is wrong with this row."""


class Drawn(NamedTuple):
    """Tokens, still on the device."""

    tokens: Tensor
    """[R] int64; -1: the model's output was not finite."""
    scores: Scores | None
    """Of the rows that want any log-probabilities."""
    wanted: np.ndarray
    """[R]: as `SamplingRows.logprobs` returns it."""

    def results(self) -> list[Sampled]:
        """Waits for the device."""
        scored = iter(self.scores.listed() if self.scores is not None else ())
        results = []
        for token, wanted in zip(self.tokens.tolist(), self.wanted.tolist(), strict=True):
            logprobs = next(scored) if wanted >= 0 else None
            if logprobs is not None:
                logprobs.top = logprobs.top[:wanted]
            if token < 0:
                results.append(Sampled(-1, None, "The model's output is not finite."))
            else:
                results.append(Sampled(token, logprobs))
        return results


def sample(kernels: Kernels, logits: Tensor, rows: SamplingRows, seats: Sequence[int]) -> Drawn:
    """The next tokens of the rows `seats`; the device is not waited for.

    Logits [R, V] float32, contiguous, which may change.
    """
    wanted = rows.logprobs(seats)
    scored = torch.from_numpy(np.flatnonzero(wanted >= 0)).to(logits.device)
    # Before anything is changed: log-probabilities are the model's own.
    own = logits[scored]
    tokens = kernels.sample(logits, rows.batch(seats))
    if not len(scored):
        return Drawn(tokens, None, wanted)
    return Drawn(tokens, score(own, tokens[scored].clamp(min=0), int(wanted.max())), wanted)


def drawn_elsewhere(tokens: Tensor) -> Drawn:
    """Tokens [R] that another rank has drawn, and whatever else was wanted keeps for itself."""
    return Drawn(tokens, None, np.full(len(tokens), -1))


def warm_up(kernels: Kernels, logits: Tensor) -> None:
    """Each kernel once, so that no request waits until it is compiled. Logits [R, V] float32, R at least 1."""
    rows = SamplingRows(logits.shape[1], kernels.device)
    rows.seat(0, SamplingParams(max_tokens=1), [])
    rows.seat(1, SamplingParams(max_tokens=1, top_k=1, top_p=0.5, presence_penalty=1.0, logprobs=1), [])
    for seat in (0, 1):
        sample(kernels, logits[:1].clone(), rows, [seat]).results()
