"""Results over some of the keys each become the result over all: each part counts by its share of the whole sum.

What a part says, the mean of its values by weights of softmax, is right within the part. How much its keys weigh beside
those of others, the sum of its weights tells. Sums differ by hundreds of powers of two, so they come as logarithms, and
only differences of these are raised again.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Parts(NamedTuple):
    """Results over some of the keys each, on their way to `merge`."""

    results: Tensor
    """[T, heads, parts, value dim] float32. Where there is one part only, the result itself: [T, heads, value dim]."""
    sums: Tensor
    """[T, heads, parts] float32: log2 of each part's sum of weights."""
    number: int
    """Of each row of a tile, with those of shared prefixes."""


def merge(parts: Parts, output: Tensor) -> None:
    """Into output [T, heads, value dim]; of parts there are at least two."""
    tokens, heads, value_dim = output.shape
    _merge_kernel[(tokens * heads,)](
        parts.results,
        parts.sums,
        output,
        parts.number,
        VALUE_DIM=value_dim,
        VALUE_LANES=triton.next_power_of_2(value_dim),
        PARTS=triton.next_power_of_2(parts.number),
        num_warps=4 if parts.number > 8 else 1,
    )


@triton.jit(do_not_specialize=["number"])
def _merge_kernel(
    parts,  # [rows, number, VALUE_DIM] float32: results over a part of the keys each
    sums,  # [rows, number] float32: log2 of each part's sum of weights
    output,  # [rows, VALUE_DIM]
    number,
    VALUE_DIM: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The result over all keys: the mean of the parts, each by its sum of weights."""
    row = tl.program_id(0).to(tl.int64)
    part, column = tl.arange(0, PARTS), tl.arange(0, VALUE_LANES)
    logs = tl.load(sums + row * number + part, mask=part < number, other=float("-inf"))
    share = tl.exp2(logs - tl.max(logs, 0))
    # An empty part has written no result.
    result = tl.load(
        parts + (row * number + part)[:, None] * VALUE_DIM + column[None, :],
        mask=(share > 0)[:, None] & (column < VALUE_DIM)[None, :],
        other=0.0,
    )
    merged = tl.sum(result * share[:, None], 0) / tl.sum(share, 0)
    tl.store(output + row * VALUE_DIM + column, merged.to(output.dtype.element_ty), mask=column < VALUE_DIM)
