"""Log-probabilities that clients see: the model's own, of the logits before penalties, biases and temperature."""

from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.kernels.interface import Scores


def listed(scores: Scores) -> list[TokenLogprobs]:
    """Waits for the device."""
    tops = zip(scores.top_tokens.tolist(), scores.top_logprobs.tolist(), strict=True)
    rows = zip(scores.tokens.tolist(), scores.logprobs.tolist(), scores.ranks.tolist(), tops, strict=True)
    return [TokenLogprobs(token, logprob, rank, list(zip(*top, strict=True))) for token, logprob, rank, top in rows]
