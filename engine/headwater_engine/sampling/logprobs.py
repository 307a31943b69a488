"""Log-probabilities that clients see: the model's own, of the logits before penalties, biases and temperature."""

from typing import NamedTuple

import torch
from torch import Tensor

from headwater_engine.core.messages import TokenLogprobs


class Scores(NamedTuple):
    """Of one token a row, and of the k likeliest beside it."""

    tokens: Tensor
    """[R] int64"""
    logprobs: Tensor
    """[R] float32"""
    ranks: Tensor
    """[R] int64; 1 is the likeliest."""
    top_tokens: Tensor
    """[R, k] int64, likeliest first."""
    top_logprobs: Tensor
    """[R, k] float32"""

    def listed(self) -> list[TokenLogprobs]:
        """Waits for the device."""
        tops = zip(self.top_tokens.tolist(), self.top_logprobs.tolist(), strict=True)
        rows = zip(self.tokens.tolist(), self.logprobs.tolist(), self.ranks.tolist(), tops, strict=True)
        return [TokenLogprobs(token, logprob, rank, list(zip(*top, strict=True))) for token, logprob, rank, top in rows]


def score(logits: Tensor, tokens: Tensor, k: int) -> Scores:
    """Logits [R, V] float32 and tokens [R] int64."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, tokens.unsqueeze(1))
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    values, indices = logprobs.topk(min(k, logprobs.shape[-1]), dim=-1)
    return Scores(tokens, chosen.squeeze(1), ranks, indices, values)
