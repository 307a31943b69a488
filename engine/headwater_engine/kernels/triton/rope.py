"""From the projection to attention in one launch: norms of heads, rotation, keys and values into their blocks.

A program takes one token and a few heads: of queries, or of keys together with the values of the same heads. Rotated
queries go back to where they came from; rotated keys only into the cache, where attention reads them.

A cache in 8 bits takes what its numbers reach, 448 either way, and rounds; keys and values of models stay far below.

A head of dimension D is three tiles: two halves that turn into one another, pair by pair, and a rest that some models
do not rotate. A norm over the head needs the squares of all three.
"""

import triton
import triton.language as tl
from torch import Tensor

from headwater_engine.kernels.interface import BLOCK_SIZE, HeadNorms, LayerCache

_HEADS = 4
"""Of a program."""


def place(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    cache: LayerCache,
    norms: HeadNorms | None,
) -> None:
    """As `Kernels.place`, with queries changed in place; the cache is [blocks, kv heads, BLOCK_SIZE, dim]."""
    tokens, heads, dim = queries.shape
    kv_heads, value_dim, half = keys.shape[1], values.shape[2], cos.shape[1]
    if tokens == 0:
        return
    _place_kernel[(tokens, triton.cdiv(heads, _HEADS) + triton.cdiv(kv_heads, _HEADS))](
        queries,
        keys,
        values,
        cos,
        sin,
        positions,
        slots,
        cache.keys,
        cache.values,
        norms.queries if norms else None,
        norms.keys if norms else None,
        norms.eps if norms else 0.0,
        queries.stride(0),
        keys.stride(0),
        values.stride(0),
        Q_HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        HALF=half,
        VALUE_DIM=value_dim,
        HALF_LANES=triton.next_power_of_2(half),
        REST_LANES=triton.next_power_of_2(max(1, dim - 2 * half)),
        VALUE_LANES=triton.next_power_of_2(value_dim),
        BLOCK=BLOCK_SIZE,
        HEADS=_HEADS,
        HAS_NORMS=norms is not None,
        num_warps=1,
    )


def write_cache(keys: Tensor, values: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """As `Kernels.write_cache`, for models that rotate by themselves."""
    tokens, kv_heads = keys.shape[:2]
    if tokens == 0:
        return
    for source, target in ((keys, cache.keys), (values, cache.values)):
        _write_kernel[(tokens, triton.cdiv(kv_heads, _HEADS))](
            source,
            target,
            slots,
            source.stride(0),
            KV_HEADS=kv_heads,
            DIM=source.shape[2],
            LANES=triton.next_power_of_2(source.shape[2]),
            BLOCK=BLOCK_SIZE,
            HEADS=_HEADS,
            num_warps=1,
        )


@triton.jit
def _place_kernel(
    queries,  # [T, Q_HEADS, DIM], tokens `query_stride` apart; changed in place
    keys,  # [T, KV_HEADS, DIM], tokens `key_stride` apart
    values,  # [T, KV_HEADS, VALUE_DIM], tokens `value_stride` apart
    cos,  # [positions, HALF] float32
    sin,
    positions,  # [T]
    slots,  # [T]
    key_cache,  # [blocks, KV_HEADS, BLOCK, DIM]
    value_cache,  # [blocks, KV_HEADS, BLOCK, VALUE_DIM]
    query_norm,  # [DIM], or None
    key_norm,
    eps,
    query_stride,
    key_stride,
    value_stride,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HALF_LANES: tl.constexpr,
    REST_LANES: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_NORMS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    QUERY_TILES: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    position = tl.load(positions + token)
    if tl.program_id(1) < QUERY_TILES:
        head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
        at = queries + token * query_stride + head * DIM
        _rotate(
            at, at, head < Q_HEADS, cos, sin, position, query_norm, eps,
            DIM, HALF, HALF_LANES, REST_LANES, HAS_NORMS,
        )  # fmt: skip
    else:
        head = (tl.program_id(1) - QUERY_TILES) * HEADS + tl.arange(0, HEADS)
        slot = tl.load(slots + token)
        row = (slot // BLOCK * KV_HEADS + head) * BLOCK + slot % BLOCK
        _rotate(
            keys + token * key_stride + head * DIM, key_cache + row * DIM, head < KV_HEADS, cos, sin, position,
            key_norm, eps, DIM, HALF, HALF_LANES, REST_LANES, HAS_NORMS,
        )  # fmt: skip
        column = tl.arange(0, VALUE_LANES)
        inside = (head < KV_HEADS)[:, None] & (column < VALUE_DIM)[None, :]
        value = tl.load(values + token * value_stride + head[:, None] * VALUE_DIM + column[None, :], mask=inside)
        value = _rounded(value, value_cache.dtype.element_ty)
        tl.store(value_cache + row[:, None] * VALUE_DIM + column[None, :], value, mask=inside)


@triton.jit
def _rounded(x, KIND: tl.constexpr):
    """x in the type of a tensor. In 8 bits, what is too large is not infinity, and what is no number stays none."""
    if tl.float8e4nv == KIND:
        x = tl.clamp(x.to(tl.float32), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return x.to(KIND)


@triton.jit
def _rotate(
    source, target, is_head, cos, sin, position, norm, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, HALF_LANES: tl.constexpr, REST_LANES: tl.constexpr, HAS_NORMS: tl.constexpr,
):  # fmt: skip
    """Heads that begin at the addresses `source` [HEADS], normed and rotated, to `target`."""
    pair, rest = tl.arange(0, HALF_LANES), 2 * HALF + tl.arange(0, REST_LANES)
    is_pair = is_head[:, None] & (pair < HALF)[None, :]
    is_rest = is_head[:, None] & (rest < DIM)[None, :]
    first = tl.load(source[:, None] + pair[None, :], mask=is_pair, other=0.0).to(tl.float32)
    second = tl.load(source[:, None] + HALF + pair[None, :], mask=is_pair, other=0.0).to(tl.float32)
    if 2 * HALF < DIM:
        behind = tl.load(source[:, None] + rest[None, :], mask=is_rest, other=0.0).to(tl.float32)
    if HAS_NORMS:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if 2 * HALF < DIM:
            squares += tl.sum(behind * behind, 1)
        scale = tl.rsqrt(squares / DIM + eps)[:, None]
        first *= scale * tl.load(norm + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        second *= scale * tl.load(norm + HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        if 2 * HALF < DIM:
            behind *= scale * tl.load(norm + rest, mask=rest < DIM, other=0.0).to(tl.float32)[None, :]
    cosine = tl.load(cos + position * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    sine = tl.load(sin + position * HALF + pair, mask=pair < HALF, other=0.0)[None, :]
    kind: tl.constexpr = target.dtype.element_ty
    tl.store(target[:, None] + pair[None, :], _rounded(first * cosine - second * sine, kind), mask=is_pair)
    tl.store(target[:, None] + HALF + pair[None, :], _rounded(second * cosine + first * sine, kind), mask=is_pair)
    if 2 * HALF < DIM:
        tl.store(target[:, None] + rest[None, :], _rounded(behind, kind), mask=is_rest)


@triton.jit
def _write_kernel(
    source,  # [T, KV_HEADS, DIM], tokens `stride` apart
    cache,  # [blocks, KV_HEADS, BLOCK, DIM]
    slots,  # [T]
    stride,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    slot, column = tl.load(slots + token), tl.arange(0, LANES)
    row = (slot // BLOCK * KV_HEADS + head) * BLOCK + slot % BLOCK
    inside = (head < KV_HEADS)[:, None] & (column < DIM)[None, :]
    value = tl.load(source + token * stride + head[:, None] * DIM + column[None, :], mask=inside)
    tl.store(cache + row[:, None] * DIM + column[None, :], _rounded(value, cache.dtype.element_ty), mask=inside)
