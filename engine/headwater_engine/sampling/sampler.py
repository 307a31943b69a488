"""Chooses one token a row: `kernels.sample` does, this knows which rows ask for log-probabilities."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.kernels.interface import Kernels, SamplingBatch, Scores
from headwater_engine.kernels.transfer import to_device
from headwater_engine.sampling.logprobs import listed


class Sampled(NamedTuple):
    token: int
    logprobs: TokenLogprobs | None
    error: str | None = None
    """Instead of a token: what is wrong with this row."""


class Drawn(NamedTuple):
    """Tokens, on the device or at home."""

    tokens: Tensor
    """[R] int64; -1: the model's output was not finite."""
    scores: Scores | None
    """Of the rows that want any log-probabilities."""
    wanted: np.ndarray
    """[R]: as `SamplingRows.logprobs` returns it."""

    def results(self) -> list[Sampled]:
        """Waits for the device."""
        scored = iter(listed(self.scores) if self.scores is not None else ())
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


def sample(kernels: Kernels, logits: Tensor, batch: SamplingBatch, wanted: np.ndarray) -> Drawn:
    """The next token of each row of a batch; the device is not waited for.

    Logits [R, V] float32, contiguous, which may change; `wanted` [R] as `SamplingRows.logprobs` returns it.
    """
    places = np.flatnonzero(wanted >= 0)
    if not len(places):
        return Drawn(kernels.sample(logits, batch), None, wanted)
    return Drawn(*kernels.sample_scored(logits, batch, to_device(places, logits.device), int(wanted.max())), wanted)


def drawn_elsewhere(tokens: Tensor) -> Drawn:
    """Tokens [R] that another rank has drawn, and whatever else was wanted keeps for itself."""
    return Drawn(tokens, None, np.full(len(tokens), -1))
