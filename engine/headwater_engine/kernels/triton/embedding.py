"""The vectors of tokens, of a vocabulary that may be shared among ranks: a program copies a piece of one vector.

A rank that has the tokens from `first` on gives zeros for all others, so that the sum over ranks is the whole. In plain
torch that is a comparison, a choice, a lookup and a product, each of which reads and writes all vectors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024
"""Of a program."""


def look_up(tokens: Tensor, table: Tensor, first: int, dtype: torch.dtype) -> Tensor:
    """See `Lookup`; zeros for tokens that are not in the table."""
    rows, size = table.shape
    output = torch.empty(len(tokens), size, dtype=dtype, device=table.device)
    if len(tokens):
        _look_up_kernel[(len(tokens), triton.cdiv(size, _COLUMNS))](
            tokens, table, output, first, rows, SIZE=size, COLUMNS=_COLUMNS, num_warps=4
        )
    return output


@triton.jit(do_not_specialize=["first", "rows"], do_not_specialize_on_alignment=["tokens"])
def _look_up_kernel(
    tokens,  # [T]
    table,  # [rows, SIZE]
    output,  # [T, SIZE]
    first,  # the token of the table's first row
    rows,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(tokens + place) - first
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < SIZE
    vector = tl.zeros([COLUMNS], tl.float32)
    if (row >= 0) & (row < rows):
        vector = tl.load(table + row * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + place * SIZE + column, vector.to(output.dtype.element_ty), mask=inside)
