"""From logits to tokens: penalties, what top-k and top-p keep, and a draw: a kernel each, where any row asks for it.

`reference_sampling.py` is the definition, which is followed to the last bit: no product is fused with a sum.

No row is sorted. What is kept of a row is all above a *cut*, a logit, and of those equal to it the first few tokens.
One program looks for a row's cut by bisection over the logits' own bits, which, read as integers, are in the logits'
order. Programs that draw know the cut, and take a piece of a row each; the largest score of the pieces wins.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headwater_engine.kernels.interface import WEIGHT_ONE, Penalties, SamplingBatch

_COLUMNS = 4096
"""Of a program at once."""
# Of the batch's numbers, which lie in one tensor: where each of them begins differs from step to step, and no kernel
# must be compiled anew for that while requests wait.
_OF_BATCH = [
    "inverse_temperatures",
    "top_k",
    "top_p",
    "min_weight",
    "keys",
    "lines",
    "repetition",
    "presence",
    "frequency",
]
_WEIGHT_ONE = tl.constexpr(WEIGHT_ONE)
_LOWEST = tl.constexpr(-(2**31))
_SHIFT = tl.constexpr(12582912.0)
_LARGEST_V = tl.constexpr(1 - 2.0**-24)
_UNIT_V = tl.constexpr(2.0**-31)


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """See `Kernels.sample`."""
    rows, size = logits.shape
    if rows == 0:
        return torch.empty(0, dtype=torch.long, device=logits.device)
    pieces = triton.cdiv(size, _COLUMNS)
    options = {"COLUMNS": min(_COLUMNS, triton.next_power_of_2(size)), "num_warps": 8, "enable_fp_fusion": False}
    if batch.penalties is not None:
        _penalize(logits, batch.penalties, (rows, pieces), options)
    if batch.biases is not None:
        logits.view(-1).index_add_(0, batch.biases.places, batch.biases.values)
    best, greedy = logits.max(dim=-1)  # the first of equals
    numbers = (logits, best, batch.inverse_temperatures, batch.top_k, batch.top_p, batch.min_weight)
    cuts = torch.empty(2, rows, dtype=torch.int32, device=logits.device)
    if batch.filters:
        _cut_kernel[(rows,)](*numbers[:-1], cuts, size, rows, **options)
    scores = torch.empty(rows, pieces, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, pieces, dtype=torch.int32, device=logits.device)
    _draw_kernel[(rows, pieces)](
        *numbers, cuts, batch.keys, scores, tokens, size, rows, FILTERS=batch.filters, **options
    )
    score, piece = scores.max(dim=-1, keepdim=True)
    drawn = tokens.gather(1, piece).squeeze(1).long()
    drawn = torch.where((batch.inverse_temperatures == 0) | (score.squeeze(1) == float("-inf")), greedy, drawn)
    return torch.where(best.isfinite(), drawn, -1)


def _penalize(logits: Tensor, penalties: Penalties, grid: tuple[int, int], options: dict[str, int]) -> None:
    _penalize_kernel[grid](logits, *penalties, logits.shape[1], **options)


@triton.jit(do_not_specialize=["size"], do_not_specialize_on_alignment=_OF_BATCH)
def _penalize_kernel(logits, counts, lines, repetition, presence, frequency, size, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    line = tl.load(lines + row).to(tl.int64)
    if line < 0:
        return
    factor, once, each = tl.load(repetition + row), tl.load(presence + row), tl.load(frequency + row)
    token = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = token < size
    value = tl.load(logits + row * size + token, mask=inside, other=0.0)
    count = tl.load(counts + line * size + token, mask=inside, other=0)
    repeated = tl.where(value > 0, tl.div_rn(value, factor + tl.zeros_like(value)), value * factor)
    value = tl.where(count > 0, repeated, value)
    shift = once + each * (count >> 1).to(tl.float32)
    tl.store(logits + row * size + token, tl.where(count > 1, value - shift, value), mask=inside)


@triton.jit(do_not_specialize=["size", "rows"], do_not_specialize_on_alignment=_OF_BATCH)
def _cut_kernel(
    logits,  # [rows, size]
    best,  # [rows]: the largest of each
    inverse_temperatures,
    top_k,
    top_p,
    cuts,  # [2, rows] int32: the cut in the order of logits, and the last token kept of those equal to it
    size,
    rows,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k, p = tl.load(top_k + row), tl.load(top_p + row)
    largest, scale = tl.load(best + row), tl.load(inverse_temperatures + row)
    logits += row * size
    cut = tl.full((), _LOWEST, tl.int32)
    last = tl.full((), 0, tl.int32)
    if scale > 0:
        if k < size:
            cut, last = _find_cut(logits, largest, scale, k.to(tl.int64), cut, size, False, COLUMNS)
        if p < 1:
            total = _sum_above(logits, largest, scale, cut, size, True, COLUMNS)
            if cut > _LOWEST:
                total += _sum_equal(logits, largest, scale, cut, last, size, COLUMNS)
            share = total.to(tl.float64) * p.to(tl.float64)
            enough = share.to(tl.int64)
            enough = tl.maximum(enough + (enough.to(tl.float64) < share).to(tl.int64), 1)
            cut, last = _find_cut(logits, largest, scale, enough, cut, size, True, COLUMNS)
    tl.store(cuts + row, cut)
    tl.store(cuts + rows + row, last)


@triton.jit
def _find_cut(logits, largest, scale, enough, lowest, size, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr):
    """The largest logits are kept, of equals the first, until their weights, or their numbers, add up to `enough`."""
    below = lowest.to(tl.int64) - 1
    cut = _order_of(largest).to(tl.int64)
    while cut - below > 1:  # the cut is the smallest order above which there is not enough
        middle = below + (cut - below) // 2
        if _sum_above(logits, largest, scale, middle, size, WEIGHTED, COLUMNS) < enough:
            cut = middle
        else:
            below = middle
    before = _sum_above(logits, largest, scale, cut, size, WEIGHTED, COLUMNS)
    last = tl.full((), -1, tl.int32)
    for first in range(0, size, COLUMNS):
        token, value = _load(logits, first, size, COLUMNS)
        equal = tl.where(_order_of(value) == cut, _size_of(value, largest, scale, WEIGHTED), 0)
        kept = (_order_of(value) == cut) & (before + tl.cumsum(equal, 0) - equal < enough)
        last = tl.maximum(last, tl.max(tl.where(kept, token, -1), 0))
        before += tl.sum(equal, 0)
    return cut.to(tl.int32), last


@triton.jit
def _sum_above(logits, largest, scale, cut, size, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr):
    total = tl.full((), 0, tl.int64)
    for first in range(0, size, COLUMNS):
        _, value = _load(logits, first, size, COLUMNS)
        total += tl.sum(tl.where(_order_of(value) > cut, _size_of(value, largest, scale, WEIGHTED), 0), 0)
    return total


@triton.jit
def _sum_equal(logits, largest, scale, cut, last, size, COLUMNS: tl.constexpr):
    """The weights of tokens up to `last` at the cut."""
    total = tl.full((), 0, tl.int64)
    for first in range(0, last + 1, COLUMNS):
        token, value = _load(logits, first, size, COLUMNS)
        equal = (_order_of(value) == cut) & (token <= last)
        total += tl.sum(tl.where(equal, _size_of(value, largest, scale, True), 0), 0)
    return total


@triton.jit
def _load(logits, first, size, COLUMNS: tl.constexpr):
    """Tokens and their logits; behind the last token, what no draw falls on."""
    token = first + tl.arange(0, COLUMNS)
    value = tl.load(logits + token, mask=token < size, other=float("-inf"))
    return token, value


@triton.jit
def _size_of(value, largest, scale, WEIGHTED: tl.constexpr):
    if WEIGHTED:
        return _weight_of((value - largest) * scale).to(tl.int64)
    else:
        return tl.full(value.shape, 1, tl.int64)


@triton.jit(do_not_specialize=["size", "rows"], do_not_specialize_on_alignment=_OF_BATCH)
def _draw_kernel(
    logits,  # [rows, size]
    best,  # [rows]
    inverse_temperatures,
    top_k,
    top_p,
    min_weight,
    cuts,  # [2, rows]
    keys,  # [2, rows]
    scores,  # [rows, pieces]: the largest of each piece
    tokens,  # [rows, pieces]: the first token that has it
    size,
    rows,
    FILTERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(inverse_temperatures + row)
    if scale == 0:
        return
    token, value = _load(logits + row * size, tl.program_id(1) * COLUMNS, size, COLUMNS)
    low = tl.load(keys + row).to(tl.uint32, bitcast=True)
    high = tl.load(keys + rows + row).to(tl.uint32, bitcast=True)
    score = value * scale + _noise_of(token.to(tl.uint32), low, high)
    if FILTERS:
        order, cut, last = _order_of(value), tl.load(cuts + row), tl.load(cuts + rows + row)
        kept = (order > cut) | ((order == cut) & (token <= last))
        kept &= _weight_of((value - tl.load(best + row)) * scale) >= tl.load(min_weight + row)
        score = tl.where(kept, score, float("-inf"))
    top = tl.max(score, 0)
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(scores + at, top)
    tl.store(tokens + at, tl.min(tl.where(score == top, token, size), 0))


@triton.jit
def _order_of(value):
    """An integer in the order of the value; -0 is 0."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _noise_of(token, low, high):
    bits = _mix(_mix(token + low) + high)
    v = tl.minimum(((bits >> 1).to(tl.int32).to(tl.float32) + 0.5) * _UNIT_V, _LARGEST_V)
    u = 1.0 - v
    # Divided by 1 where it would be by 0, and is not taken.
    precise = _log_of(u) * tl.div_rn(v, tl.where(u == 1.0, 1.0, u - 1.0))
    return -_log_of(tl.where(u == 1.0, v, precise))


@triton.jit
def _log_of(x):
    bits = x.to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    r = (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0
    p = r * 7.0376836292e-2 + -1.1514610310e-1
    p = p * r + 1.1676998740e-1
    p = p * r + -1.2420140846e-1
    p = p * r + 1.4249322787e-1
    p = p * r + -1.6668057665e-1
    p = p * r + 2.0000714765e-1
    p = p * r + -2.4999993993e-1
    p = p * r + 3.3333331174e-1
    square = r * r
    y = p * r * square + n.to(tl.float32) * -2.12194440e-4 - 0.5 * square
    return r + y + n.to(tl.float32) * 0.693359375


@triton.jit
def _weight_of(x):
    """e^x of x <= 0, in units of 1 / WEIGHT_ONE."""
    x = tl.maximum(x, -30.0)
    n = (x * 1.44269504 + _SHIFT) - _SHIFT
    r = x - n * 0.693359375 - n * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r + r + 1.0
    return (p * ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True) * _WEIGHT_ONE).to(tl.int32)
