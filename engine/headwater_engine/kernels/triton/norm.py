"""RMS norm, alone or fused with the addition to the residual stream: a program for each row.

The row stays in registers between the two passes over it, its sum of squares and its scaling, so that it is read once.
That is all there is to gain: a norm computes next to nothing and waits for memory. For the same reason the addition
before it is done here: by itself it would read and write the residual once more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[T, H] or, for norms of heads, [T, heads, H] -> the same, contiguous. Rows of x may lie apart."""
    size = x.shape[-1]
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    inner = x.shape[1] if x.dim() == 3 else 1
    strides = (x.stride(0), x.stride(1) if x.dim() == 3 else 0)
    _launch(x, output, weight, output, strides, inner, size, eps, has_residual=False)
    return output


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x, in place; then the norm of the residual. [T, H], residual contiguous."""
    output = torch.empty_like(residual)
    _launch(x, residual, weight, output, (x.stride(0), 0), 1, x.shape[-1], eps, has_residual=True)
    return output


def _launch(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    output: Tensor,
    strides: tuple[int, int],
    inner: int,
    size: int,
    eps: float,
    *,
    has_residual: bool,
) -> None:
    rows = x.shape[0] * inner
    if rows == 0:
        return
    lanes = triton.next_power_of_2(size)
    _rms_norm_kernel[(rows,)](
        x,
        residual,
        weight,
        output,
        *strides,
        inner,
        eps,
        SIZE=size,
        LANES=lanes,
        HAS_RESIDUAL=has_residual,
        num_warps=min(16, max(1, lanes // 512)),
    )


@triton.jit(do_not_specialize=["inner"])
def _rms_norm_kernel(
    x,  # rows of SIZE at row // inner * outer_stride + row % inner * inner_stride
    residual,  # [rows, SIZE]
    weight,  # [SIZE]
    output,  # [rows, SIZE]
    outer_stride,
    inner_stride,
    inner,
    eps,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, LANES)
    inside = column < SIZE
    value = tl.load(x + row // inner * outer_stride + row % inner * inner_stride + column, mask=inside, other=0.0)
    value = value.to(tl.float32)
    if HAS_RESIDUAL:
        summed = value + tl.load(residual + row * SIZE + column, mask=inside, other=0.0).to(tl.float32)
        # What is normalised is the residual as it is kept.
        kept = summed.to(residual.dtype.element_ty)
        tl.store(residual + row * SIZE + column, kept, mask=inside)
        value = kept.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    weights = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * SIZE + column, (value * scale * weights).to(output.dtype.element_ty), mask=inside)
