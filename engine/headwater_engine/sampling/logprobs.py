"""Log-probabilities that clients see: the model's own, of the logits before penalties, biases and temperature."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater_engine.core.messages import TokenLogprobs


def token_logprobs(logits: Tensor, tokens: Sequence[int], k: int) -> list[TokenLogprobs]:
    """Of one chosen token a row, and of the k likeliest beside it. logits [R, V] float32."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, dtype=torch.long, device=logprobs.device).unsqueeze(1))
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    values, indices = logprobs.topk(min(k, logprobs.shape[-1]), dim=-1)
    tops = [list(zip(*row, strict=True)) for row in zip(indices.tolist(), values.tolist(), strict=True)]
    return [TokenLogprobs(*row) for row in zip(tokens, chosen.squeeze(1).tolist(), ranks.tolist(), tops, strict=True)]
