"""Choosing tokens, in plain torch: the definition of what the fast kernels compute, to the last bit.

Order of operations, as in vLLM: penalties, masks and biases, temperature, top-k, top-p, min-p, then one draw of what is
left by *Gumbel-max*: the token of the largest logit / temperature + noise, where each token's noise is -log(-log(u))
for a u of its own, uniform in (0, 1) (Maddison, Tarlow and Minka, "A* sampling"). This draws from the softmax without
computing it.

Kernels on other hardware sum in another order, and their own exp and log differ in the last bit. So here exp and log
are written out in operations that IEEE 754 defines exactly (with the polynomials of Cephes' expf and logf), and
probabilities are integers. Who follows must not fuse a product with a sum.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from headwater_engine.kernels.interface import WEIGHT_ONE, Masks, Maxima, Penalties, SamplingBatch, Scores

_WORD = 0xFFFFFFFF
_SHIFT = 12582912.0
"""1.5 * 2^23: adding it rounds to an integer."""
_NEVER = -30.0
"""Logarithm of a share so small that its weight is 0 anyway."""
_FIRM_WEIGHT = 1 << 12
"""From here on, rounding a weight down takes less than the hundredth that `_firm_tokens` spares."""
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def maxima(logits: Tensor, batch: SamplingBatch) -> Maxima:
    """See `Kernels.maxima`."""
    if batch.only is not None:
        return maxima(logits[batch.only], _rows_of(batch, batch.only))
    if batch.penalties is not None:
        _penalize(logits, batch.penalties)
    if batch.masks is not None:
        logits.masked_fill_(~_allowed(batch.masks, logits.shape[1]), float("-inf"))
    if batch.biases is not None:
        logits.view(-1).index_add_(0, batch.biases.places, batch.biases.values)
    best = logits.amax(dim=-1, keepdim=True)  # NaN is the largest; where all are -inf, so is the best
    unfiltered = scores = logits * batch.inverse_temperatures.unsqueeze(1) + gumbel(batch.keys, logits.shape[1])
    if batch.filters:
        scores = scores.masked_fill(~kept_tokens(logits, best, batch), float("-inf"))
    scores = torch.where((batch.inverse_temperatures == 0).unsqueeze(1), logits, scores)
    score = scores.amax(dim=-1)
    # With logits near the largest number, a tiny temperature makes all scores -inf.
    tokens = torch.where(score == float("-inf"), _first_largest(logits), _first_largest(scores))
    if batch.unmasked is not None and batch.filters:
        doubted = batch.unmasked & (batch.inverse_temperatures > 0)
        doubted &= ~_firm_tokens(logits, best, unfiltered, tokens, batch)
        tokens = torch.where(doubted, -1, tokens)
    best = best.squeeze(1)
    best = torch.where(best == float("inf"), float("nan"), best)
    return Maxima(score, best, torch.where(best.isfinite(), tokens, -1))


def _rows_of(batch: SamplingBatch, rows: Tensor) -> SamplingBatch:
    """These rows as a batch of their own."""
    assert batch.penalties is None
    assert batch.biases is None
    return SamplingBatch(
        inverse_temperatures=batch.inverse_temperatures[rows],
        keys=batch.keys[:, rows],
        top_k=batch.top_k[rows],
        top_p=batch.top_p[rows],
        min_weight=batch.min_weight[rows],
        filters=batch.filters,
        penalties=None,
        masks=None if batch.masks is None else Masks(batch.masks.bits, batch.masks.rows[rows]),
        biases=None,
        unmasked=None if batch.unmasked is None else batch.unmasked[rows],
    )


def sample_scored(
    sample: Callable[[Tensor, SamplingBatch], Tensor], logits: Tensor, batch: SamplingBatch, rows: Tensor, k: int
) -> tuple[Tensor, Scores]:
    """`Kernels.sample_scored` by one that samples, and plain torch."""
    own = logits[rows]  # before anything is changed
    tokens = sample(logits, batch)
    return tokens, score(own, tokens[rows].clamp(min=0), k)


def score(logits: Tensor, tokens: Tensor, k: int) -> Scores:
    """Logits [R, V] float32 and tokens [R] int64."""
    logprobs = torch.log_softmax(logits, dim=-1)
    places = tokens.unsqueeze(1)
    ranks = (logits > logits.gather(1, places)).sum(dim=-1) + 1
    values, indices = logprobs.topk(min(k, logprobs.shape[-1]), dim=-1)
    return Scores(tokens, logprobs.gather(1, places).squeeze(1), ranks, indices, values)


def gumbel(keys: Tensor, vocabulary: int) -> Tensor:
    """[2, R] int32 -> noise [R, V] float32, between -2.9 and 22.2."""
    return noise_of(random_bits(keys, vocabulary))


def random_bits(keys: Tensor, vocabulary: int) -> Tensor:
    """[2, R] int32 -> 31 random bits for each token, [R, V] int64."""
    tokens = torch.arange(vocabulary, device=keys.device)
    low, high = (keys.long() & _WORD).unsqueeze(2)
    return _mix((_mix((tokens + low) & _WORD) + high) & _WORD) >> 1


def noise_of(bits: Tensor) -> Tensor:
    """-log(-log(u)) for u = 1 - (bits + 0.5) / 2^31, float32."""
    # The largest noise wins, so the u near 1 matter, where float32 has no digits left; v = 1 - u has them all.
    v = ((bits.float() + 0.5) * 2.0**-31).clamp(max=1 - 2.0**-24)
    u = 1 - v
    # log(1 - v), to full precision for the smallest v, too (Kahan).
    exponential = torch.where(u == 1, v, _log(u) * (v / (u - 1)))
    return -_log(exponential)


def _mix(x: Tensor) -> Tensor:
    """Each word in int64: a bijection after which they look unrelated ("lowbias32", Wellons, "Prospecting for hash
    functions")."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _penalize(logits: Tensor, penalties: Penalties) -> None:
    for row, line in enumerate(penalties.rows.tolist()):
        if line < 0:
            continue
        counts, values, factor = penalties.counts[line], logits[row], penalties.repetition[row]
        values = torch.where(counts > 0, torch.where(values > 0, values / factor, values * factor), values)
        shift = penalties.presence[row] + penalties.frequency[row] * (counts >> 1)
        logits[row] = torch.where(counts > 1, values - shift, values)


def _allowed(masks: Masks, vocabulary: int) -> Tensor:
    """[R, V] bool"""
    tokens = torch.arange(vocabulary, device=masks.bits.device)
    words = masks.bits[masks.rows.clamp(min=0).long()][:, tokens // 32]
    return ((words >> (tokens % 32)) & 1).bool() | (masks.rows < 0).unsqueeze(1)


def kept_tokens(logits: Tensor, best: Tensor, batch: SamplingBatch) -> Tensor:
    """[R, V] bool: the tokens that top-k, top-p and min-p leave, of equal logits the lower tokens first."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    weights = weights_of((ordered - best) * batch.inverse_temperatures.unsqueeze(1))
    likeliest = torch.arange(logits.shape[1], device=logits.device) < batch.top_k.unsqueeze(1)
    shares = torch.where(likeliest, weights.long(), 0)
    before = shares.cumsum(dim=-1) - shares
    # A token stays while those before it hold less than top_p, the first one always.
    enough = (shares.sum(dim=-1).double() * batch.top_p.double()).ceil().clamp(min=1).unsqueeze(1)
    unlimited = (batch.top_p >= 1).unsqueeze(1)
    kept = likeliest & ((before < enough) | unlimited) & (weights >= batch.min_weight.unsqueeze(1))
    return torch.zeros_like(kept).scatter_(1, order, kept)


def _firm_tokens(logits: Tensor, best: Tensor, scores: Tensor, tokens: Tensor, batch: SamplingBatch) -> Tensor:
    """[R] bool: whether a mask that has this token, which was drawn, would leave it the one that is drawn, as far as
    can be told without the mask. `scores` are those before filters; see `is_firm` of sampling.cpp for the reasons."""
    unfiltered = (batch.top_k >= logits.shape[1]) & (batch.top_p >= 1)
    without_min_p = replace(batch, min_weight=torch.zeros_like(batch.min_weight))
    alone = ~unfiltered & (kept_tokens(logits, best, without_min_p).sum(dim=-1) == 1)
    places = tokens.clamp(max=logits.shape[1] - 1).unsqueeze(1)
    largest = (scores.gather(1, places).squeeze(1) > float("-inf")) & (_first_largest(scores) == tokens)
    weights = weights_of((logits - best) * batch.inverse_temperatures.unsqueeze(1)).long()
    weight, logit = weights.gather(1, places).squeeze(1), logits.gather(1, places)
    before = torch.arange(logits.shape[1], device=logits.device) < places
    likelier = torch.where((logits > logit) | ((logits == logit) & before), weights, 0).sum(dim=-1).double()
    p = batch.top_p.double()
    stays = (batch.top_p >= 1) | (likelier * (1 - p) * 1.01 < weight.double() * p)
    unlikely = (weight < _FIRM_WEIGHT) | (weight * 99 < batch.min_weight.long() * 100)
    unfiltered &= batch.min_weight == 0
    return unfiltered | alone | (largest & stays & ~unlikely)


def weights_of(x: Tensor) -> Tensor:
    """e^x of x <= 0 in units of 1 / WEIGHT_ONE, int32, rounded down."""
    x = torch.where(x > _NEVER, x, _NEVER)
    n = (x * 1.44269504 + _SHIFT) - _SHIFT
    r = x - n * 0.693359375 - n * -2.12194440e-4
    p = torch.full_like(r, _EXP[0])
    for coefficient in _EXP[1:]:
        p = p * r + coefficient
    p = p * r * r + r + 1.0
    return (p * _power_of_two(n.int())).mul(WEIGHT_ONE).int()


def _power_of_two(n: Tensor) -> Tensor:
    return ((n + 127) << 23).view(torch.float32)


def _log(x: Tensor) -> Tensor:
    """Of positive normal numbers, to about a unit in the last place."""
    bits = x.view(torch.int32)
    n = (bits - 0x3F3504F3) >> 23  # the exponent, such that the rest is between sqrt(1/2) and sqrt(2)
    r = (bits - (n << 23)).view(torch.float32) - 1.0
    p = torch.full_like(r, _LOG[0])
    for coefficient in _LOG[1:]:
        p = p * r + coefficient
    square = r * r
    y = p * r * square + n * -2.12194440e-4 - 0.5 * square
    return r + y + n * 0.693359375


def _first_largest(values: Tensor) -> Tensor:
    """[R, V] -> [R] int64: of equals the lowest."""
    tokens = torch.arange(values.shape[1], device=values.device)
    return torch.where(values == values.amax(dim=-1, keepdim=True), tokens, values.shape[1]).amin(dim=-1)
