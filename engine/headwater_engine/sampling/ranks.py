"""How ranks choose tokens together, each of which has the logits of its part of the vocabulary.

What is drawn is the token with the largest of all scores, and that is the largest of the ranks' largest. So rows that
are greedy, or ask for a temperature only, are chosen without bringing logits together: three numbers a row and rank go
round, and all ranks find the same token. What looks at all tokens of a row, or changes some, is left to the first rank:
logits come together there, and it tells the others.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from headwater_engine.distributed.ranks import Ranks
from headwater_engine.kernels.interface import Kernels, SamplingBatch
from headwater_engine.sampling.sampler import Drawn, drawn_elsewhere, sample


def sample_among(
    ranks: Ranks, kernels: Kernels, logits: Tensor, batch: SamplingBatch, wanted: np.ndarray, vocabulary: int
) -> Drawn:
    """The next token of each row, on all ranks; see `sample`. Logits [R, n] are this rank's of `vocabulary`."""
    if ranks.size == 1:
        return sample(kernels, logits, batch, wanted)
    if not (batch.filters or batch.changes or (wanted >= 0).any()):
        return Drawn(_largest_of_all(ranks, kernels, logits, batch, vocabulary), None, wanted)
    logits = bring_together(ranks, logits, vocabulary)
    if ranks.rank:
        return drawn_elsewhere(ranks.tell(torch.empty(len(wanted), dtype=torch.long, device=logits.device)))
    drawn = sample(kernels, logits, batch, wanted)
    ranks.tell(drawn.tokens)
    return drawn


def bring_together(ranks: Ranks, logits: Tensor, vocabulary: int) -> Tensor:
    """[R, n] of each rank -> [R, vocabulary] on the first, no rows on the others."""
    return ranks.gather(logits)[:, :vocabulary].contiguous()


def _largest_of_all(ranks: Ranks, kernels: Kernels, logits: Tensor, batch: SamplingBatch, vocabulary: int) -> Tensor:
    first = ranks.rank * logits.shape[1]
    logits[:, max(0, vocabulary - first) :] = float("-inf")
    keys = batch.keys.clone()
    keys[0] += first  # noise is the token's
    found = kernels.maxima(logits, replace(batch, keys=keys))
    tokens = (found.tokens + first).int()
    words = ranks.exchange(torch.stack([found.scores.view(torch.int32), found.best.view(torch.int32), tokens]))
    scores, best = words[:, 0].view(torch.float32), words[:, 1].view(torch.float32)
    # With logits near the largest number, a tiny temperature makes all scores -inf.
    deciding = torch.where(scores.amax(dim=0) == float("-inf"), best, scores)
    token = torch.where(deciding == deciding.amax(dim=0), words[:, 2].long(), vocabulary).amin(dim=0)
    return torch.where(best.amax(dim=0).isfinite(), token, -1)  # NaN is the largest
