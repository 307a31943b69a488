"""What top-k and top-p keep of a row, without sorting it: all above a *cut*, a logit, and of those equal to it the
first few tokens.

One program looks for a row's cut by bisection over the logits' own bits, which, read as integers, are in the logits'
order.
"""

import triton
import triton.language as tl

from headwater_engine.kernels.triton.sampling_numbers import OF_BATCH, load, order_of, weight_of

_LOWEST = tl.constexpr(-(2**31))


@triton.jit(do_not_specialize=["size", "rows"], do_not_specialize_on_alignment=OF_BATCH)
def cut_kernel(
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
    cut = order_of(largest).to(tl.int64)
    while cut - below > 1:  # the cut is the smallest order above which there is not enough
        middle = below + (cut - below) // 2
        if _sum_above(logits, largest, scale, middle, size, WEIGHTED, COLUMNS) < enough:
            cut = middle
        else:
            below = middle
    before = _sum_above(logits, largest, scale, cut, size, WEIGHTED, COLUMNS)
    last = tl.full((), -1, tl.int32)
    for first in range(0, size, COLUMNS):
        token, value = load(logits, first, size, COLUMNS)
        equal = tl.where(order_of(value) == cut, _size_of(value, largest, scale, WEIGHTED), 0)
        kept = (order_of(value) == cut) & (before + tl.cumsum(equal, 0) - equal < enough)
        last = tl.maximum(last, tl.max(tl.where(kept, token, -1), 0))
        before += tl.sum(equal, 0)
    return cut.to(tl.int32), last


@triton.jit
def _sum_above(logits, largest, scale, cut, size, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr):
    total = tl.full((), 0, tl.int64)
    for first in range(0, size, COLUMNS):
        _, value = load(logits, first, size, COLUMNS)
        total += tl.sum(tl.where(order_of(value) > cut, _size_of(value, largest, scale, WEIGHTED), 0), 0)
    return total


@triton.jit
def _sum_equal(logits, largest, scale, cut, last, size, COLUMNS: tl.constexpr):
    """The weights of tokens up to `last` at the cut."""
    total = tl.full((), 0, tl.int64)
    for first in range(0, last + 1, COLUMNS):
        token, value = load(logits, first, size, COLUMNS)
        equal = (order_of(value) == cut) & (token <= last)
        total += tl.sum(tl.where(equal, _size_of(value, largest, scale, True), 0), 0)
    return total


@triton.jit
def _size_of(value, largest, scale, WEIGHTED: tl.constexpr):
    if WEIGHTED:
        return weight_of((value - largest) * scale).to(tl.int64)
    else:
        return tl.full(value.shape, 1, tl.int64)
