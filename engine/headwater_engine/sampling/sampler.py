"""Chooses one token a row.

Order of operations, as in vLLM: penalties and biases, temperature, top-k, top-p, min-p, then one draw by inverting the
cumulative distribution of what is left. The draw's only randomness is one number for (seed, output position), so a
row's token does not depend on the rest of the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.sampling.logprobs import token_logprobs
from headwater_engine.sampling.noise import uniform
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.penalties import shift_logits, shifts_logits

_HEAD = 1024
"""Candidates that top-p looks at before it sorts the whole vocabulary; they nearly always hold enough probability."""


class SamplingRow(Protocol):
    """What the sampler needs of a request."""

    params: SamplingParams
    prompt: list[int]
    output: list[int]
    """Tokens so far."""


class Sampled(NamedTuple):
    token: int
    logprobs: TokenLogprobs | None
    error: str | None = None
    """Instead of a token: what is wrong with this row."""


class Sampler:
    """Keeps nothing between calls: all that a row needs follows from its tokens."""

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> list[Sampled]:
        """logits [R, V] float32, which it may change; rows [R]."""
        best = _argmax(logits)
        broken = (~logits.gather(1, best.unsqueeze(1)).squeeze(1).isfinite()).tolist()
        tokens = best.tolist()
        scored = [n for n, row in enumerate(rows) if row.params.logprobs is not None and not broken[n]]
        # Before anything is changed: log-probabilities are the model's own.
        raw = logits[scored] if scored else logits[:0]
        for n, row in enumerate(rows):
            if shifts_logits(row.params, len(row.output)):
                shift_logits(logits[n], row.params, row.prompt, row.output)
                tokens[n] = int(_argmax(logits[n]))
        for n, row in enumerate(rows):
            if row.params.temperature > 0 and not broken[n]:
                tokens[n] = _draw(logits[n], row.params, uniform(row.params.seed, len(row.output)))
        logprobs = self._logprobs(raw, scored, tokens, rows)
        return [
            Sampled(-1, None, "The model's output is not finite.") if broken[n] else Sampled(token, logprobs.get(n))
            for n, token in enumerate(tokens)
        ]

    def _logprobs(
        self, raw: Tensor, scored: Sequence[int], tokens: Sequence[int], rows: Sequence[SamplingRow]
    ) -> dict[int, TokenLogprobs]:
        if not scored:
            return {}
        most = max(rows[n].params.logprobs or 0 for n in scored)
        found = dict(zip(scored, token_logprobs(raw, [tokens[n] for n in scored], most), strict=True))
        for n, each in found.items():
            each.top = each.top[: rows[n].params.logprobs]
        return found


def _argmax(logits: Tensor) -> Tensor:
    """[..., V] -> [...] int64, the first of equals; a NaN is the largest."""
    if not logits.is_cpu:
        return logits.argmax(dim=-1)
    return torch.from_numpy(np.asarray(logits.numpy().argmax(axis=-1)))  # torch's own takes six times as long


def _draw(logits: Tensor, params: SamplingParams, noise: float) -> int:
    """A token of logits [V], by `noise` in [0, 1)."""
    scaled = logits / max(params.temperature, 1e-5)
    if params.top_k:
        values, tokens = scaled.topk(min(params.top_k, len(scaled)))
    elif params.top_p < 1:
        values, tokens = _head(scaled, params.top_p)
    else:
        values, tokens = scaled, None
    probabilities = values.softmax(dim=-1)
    if tokens is not None and params.top_p < 1:
        # Sorted: a token stays while those before it hold less than top_p, the first one always.
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= params.top_p, 0.0)
    if params.min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < params.min_p * probabilities.amax(), 0.0)
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    drawn = int(torch.searchsorted(cumulative, noise * float(cumulative[-1]), right=True))
    # Rounding may point behind the last candidate.
    drawn = min(drawn, int(probabilities.nonzero()[-1])) if drawn >= len(probabilities) else drawn
    return drawn if tokens is None else int(tokens[drawn])


def _head(scaled: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest logits, sorted, with all others' probability in none of them mattering to top-p.

    Returns enough of them to hold `top_p` of the whole distribution; the softmax over them alone would overstate their
    share, so the rest's share is kept as one more candidate that top-p always removes.
    """
    total = scaled.logsumexp(dim=-1)
    values, tokens = scaled.topk(min(_HEAD, len(scaled)))
    if len(values) < len(scaled) and float((values - total).exp().sum()) < top_p:
        values, tokens = scaled.sort(descending=True, stable=True)
        return values, tokens
    head = values.logsumexp(dim=-1)
    if len(values) == len(scaled) or head >= total:
        return values, tokens
    rest = total + torch.log1p(-(head - total).exp())
    return torch.cat([values, rest.unsqueeze(0)]), torch.cat([tokens, tokens[:1]])
