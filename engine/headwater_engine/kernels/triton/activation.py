"""SiLU(gate) * up, from the one product that computes both: read once, written once, nothing between."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024
"""Of a program."""


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 * I] -> [T, I]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        _silu_mul_kernel[(rows, triton.cdiv(size, _COLUMNS))](
            gate_up, output, gate_up.stride(0), SIZE=size, COLUMNS=_COLUMNS, num_warps=4
        )
    return output


@triton.jit
def _silu_mul_kernel(
    gate_up,  # [T, 2 * SIZE], rows `stride` apart
    output,  # [T, SIZE]
    stride,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < SIZE
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + SIZE + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * SIZE + column, (gate * tl.sigmoid(gate) * up).to(output.dtype.element_ty), mask=inside)
