"""Attention over the paged cache: prompts and single tokens of many sequences in one launch.

**Whose work is a program's.** All query heads of a group read the same keys and values, so that one program computes
them together: its tile has `rows` rows, each a (token, head) pair of one sequence and one KV head. With 4 heads in a
group, a tile of 64 rows holds 16 tokens of a prompt; a sequence that decodes fills 4 rows of its 16, and since decoding
waits for memory, the idle rows cost nothing. Each key is read once for the whole tile.

**How a program computes.** It walks over the keys, `keys` of them at a time. Where they lie, the block table says.
Scores S = Q K^T become weights by softmax, whose maximum is not known before the last key. So it keeps, a row, the
largest score so far (m), the sum of the weights relative to it (l) and the weighted sum of the values (a), and whenever
a larger score comes, scales down what it has by exp(old m - new m) (*online softmax*; Milakov and Gimelshein, 2018; Dao
et al., FlashAttention). In the end the result is a / l. Exponentials are taken to base 2, which is what GPUs have.

**Few sequences, long contexts.** A GPU has more than a hundred processors; one request with 8 KV heads would use eight
of them. So the context is cut into `splits` parts for programs of their own, which leave their a / l and log2(l) + m
behind, and a second kernel puts them together: each part counts by its share of the whole sum (*flash-decoding*).
Parts are cut on the GPU from each sequence's own length, so that the grid depends on nothing but the sizes of the
batch, and a recorded launch stays right while contexts grow.

**Prompts beside tokens that decode** are a launch of their own: their tiles are full, and those of the others need not
be as large.

**A prefix that several sequences share** (`prefixes.py`) is read once for all of them, by a launch of its own in which
a group of them is like one sequence with many queries: its tiles are full, as those of prompts are. What it finds is
one more part of each of their contexts, and the launch for the sequences themselves begins behind the prefix. There is
room for a fixed number of groups, and a program without one ends at once, so that this can be recorded, too. Layers
with a window go without: of what is shared, the beginning of a context, they soon see nothing.

**Keys and values in 8 bits** (e4m3: 4 bits of exponent, 3 of fraction) are widened as they are loaded. Half the bytes
are read, and all that is computed with them is as before.
"""

from dataclasses import replace
from typing import NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, LayerCache
from headwater_engine.kernels.triton.merge import Parts, merge
from headwater_engine.kernels.triton.tiling import Processors, Tiling, choose_shared_tiling, choose_tiling, count_tiles

LOG2_E = tl.constexpr(1.4426950408889634)


class Sequences(NamedTuple):
    """What a launch works on: sequences, or groups of them, which look like a sequence (`SharedPrefixes`)."""

    query_starts: Tensor
    context_lengths: Tensor
    one_query_each: bool
    members: Tensor | None = None
    """Of groups: `SharedPrefixes.members`, and each of them sees the whole prefix."""
    skipped: Tensor | None = None
    """Of sequences beside groups: `SharedPrefixes.skipped`."""


def paged_attention(
    queries: Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    processors: Processors,
    tiling: Tiling | None = None,
    shared_tiling: Tiling | None = None,
) -> Tensor:
    """As `Kernels.paged_attention`, on keys and values of [blocks, kv heads, BLOCK_SIZE, dim]."""
    output = queries.new_empty(*queries.shape[:2], cache.values.shape[3])
    for first, part in _parts_of(batch):
        rows = slice(first, first + len(part.positions))
        if len(part.positions):
            rules = (scale, softcap, window)
            _attend_part(queries[rows], output[rows], cache, part, rules, sinks, processors, tiling, shared_tiling)
    return output


def _parts_of(batch: AttentionBatch) -> list[tuple[int, AttentionBatch]]:
    """Those that decode, and the prompts behind them, which take other tiles; and with which token each begins."""
    count = batch.decodes
    if batch.longest_query == 1 or count == 0:
        return [(0, batch)]
    if "parts" not in batch.plans:
        first = replace(
            batch,
            positions=batch.positions[:count],
            block_tables=batch.block_tables[:count],
            query_starts=batch.query_starts[: count + 1],
            context_lengths=batch.context_lengths[:count],
            longest_query=1,
        )
        others = replace(
            batch,
            positions=batch.positions[count:],
            block_tables=batch.block_tables[count:],
            query_starts=batch.query_starts[count:] - count,
            context_lengths=batch.context_lengths[count:],
            prefixes=None,
        )
        batch.plans["parts"] = [(0, first), (count, others)]
    return cast("list[tuple[int, AttentionBatch]]", batch.plans["parts"])


def _attend_part(
    queries: Tensor,
    output: Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    rules: tuple[float, float | None, int | None],
    sinks: Tensor | None,
    processors: Processors,
    tiling: Tiling | None,
    shared_tiling: Tiling | None,
) -> None:
    """`rules`: scale, softcap, window."""
    tokens, heads, value_dim = output.shape
    kv_heads = cache.values.shape[1]
    group = heads // kv_heads
    prefixes = batch.prefixes if rules[2] is None else None
    tiling = tiling or choose_tiling(batch, queries, kv_heads, processors)
    number, parts = tiling.splits, Parts(output, output, 1)
    if prefixes is not None:
        shared_tiling = shared_tiling or choose_shared_tiling(batch, queries, kv_heads, processors)
        number += shared_tiling.splits
    if number > 1:
        results = output.new_empty(tokens, heads, number, value_dim, dtype=torch.float32)
        parts = Parts(results, output.new_empty(tokens, heads, number, dtype=torch.float32), number)
    work = Sequences(
        batch.query_starts,
        batch.context_lengths,
        batch.longest_query == 1,
        skipped=None if prefixes is None else prefixes.skipped,
    )
    tiles = count_tiles(batch, tiling.rows, group)
    _launch(tiles, work, queries, cache, batch.block_tables, rules, sinks, parts, 0, tiling)
    if prefixes is not None and shared_tiling is not None:
        groups = Sequences(prefixes.starts, prefixes.lengths, False, prefixes.members)
        tiles = len(batch.context_lengths) // (shared_tiling.rows // group) + len(prefixes.lengths)
        _launch(tiles, groups, queries, cache, batch.block_tables, rules, None, parts, tiling.splits, shared_tiling)
    if number > 1:
        merge(parts, output)


def _launch(
    tiles: int,
    work: Sequences,
    queries: Tensor,
    cache: LayerCache,
    block_tables: Tensor,
    rules: tuple[float, float | None, int | None],
    sinks: Tensor | None,
    parts: Parts,
    first_part: int,
    tiling: Tiling,
) -> None:
    """`rules`: scale, softcap, window. The parts of this launch are those from `first_part` on."""
    scale, softcap, window = rules
    kv_heads, key_dim, value_dim = cache.keys.shape[1], queries.shape[2], cache.values.shape[3]
    _attention_kernel[(tiles, kv_heads, tiling.splits)](
        queries,
        cache.keys,
        cache.values,
        block_tables,
        work.query_starts,
        work.context_lengths,
        work.members,
        work.skipped,
        sinks,
        parts.results,
        parts.sums,
        queries.stride(0),
        block_tables.stride(0),
        len(work.context_lengths),
        tiling.splits,
        first_part,
        parts.number,
        scale * LOG2_E.value,
        softcap or 0.0,
        window or 0,
        GROUP=queries.shape[1] // kv_heads,
        KV_HEADS=kv_heads,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        KEY_LANES=_lanes(key_dim),
        VALUE_LANES=_lanes(value_dim),
        BLOCK=BLOCK_SIZE,
        ROWS=tiling.rows,
        KEYS=tiling.keys,
        ONE_QUERY_EACH=work.one_query_each,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
        SPLIT=parts.number > 1,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )


def _lanes(dim: int) -> int:
    """Columns of a tile: a power of two, and what the matrix units take at least."""
    return max(16, triton.next_power_of_2(dim))


# Triton compiles a kernel anew for a number that is 1 or divisible by 16, and for a tensor that begins at a multiple of
# 16 bytes, unless told that it need not. Some of these lie in one tensor, behind one another.
@triton.jit(
    do_not_specialize=["table_stride", "sequences", "splits", "first_part", "parts_each", "window"],
    do_not_specialize_on_alignment=["query_starts", "context_lengths", "members", "skipped"],
)
def _attention_kernel(
    queries,  # [T, KV_HEADS * GROUP, KEY_DIM], tokens `query_stride` apart
    keys,  # [blocks, KV_HEADS, BLOCK, KEY_DIM]
    values,  # [blocks, KV_HEADS, BLOCK, VALUE_DIM]
    block_tables,  # [S, ...], sequences `table_stride` apart
    query_starts,  # [S + 1]
    context_lengths,  # [S]
    members,  # of groups: [queries], whose they are, each with one token; None: these are sequences
    skipped,  # [S]: keys at the beginning that a group sees to; None: there are no groups
    sinks,  # [heads], or None
    parts,  # [T, heads, parts_each, VALUE_DIM] float32; not SPLIT: the result, [T, heads, VALUE_DIM]
    sums,  # [T, heads, parts_each] float32: log2 of each part's sum of weights
    query_stride,
    table_stride,
    sequences,
    splits,
    first_part,
    parts_each,
    scale,  # times log2(e)
    softcap,
    window,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_LANES: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    ONE_QUERY_EACH: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    SPLIT: tl.constexpr,
):
    kv_head, split = tl.program_id(1), tl.program_id(2)
    TOKENS: tl.constexpr = ROWS // GROUP
    # Which tokens of which sequence? Those of the longest contexts, at the end, begin first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    if ONE_QUERY_EACH:
        sequence, first = tile, 0
    else:
        sequence = _sequence_of(tile, query_starts, sequences, TOKENS)
        first = (tile - (tl.load(query_starts + sequence) // TOKENS + sequence)) * TOKENS
    start = tl.load(query_starts + sequence)
    count = tl.load(query_starts + sequence + 1) - start
    if first >= count:
        return
    context = tl.load(context_lengths + sequence)

    row = tl.arange(0, ROWS)
    is_row = (row < TOKENS * GROUP) & (first + row // GROUP < count)
    head = kv_head * GROUP + row % GROUP
    # The keys that any row sees, [begin, end), and how many of them, from the context's beginning on, all rows see.
    begin = 0
    if members is None:
        token = start + first + row // GROUP
        position = context - count + first + row // GROUP
        seen = context - count + first + 1
        end = context - count + tl.minimum(first + TOKENS, count)
    else:
        token = tl.load(members + start + first + row // GROUP, mask=is_row, other=0)
        position = context - 1 + 0 * row
        seen = context
        end = context
    index = token.to(tl.int64) * (KV_HEADS * GROUP) + head
    if skipped is not None:
        begin = tl.load(skipped + sequence)
        if (begin == 0) & (split == 0):
            for part in range(splits, parts_each):  # no group will fill them
                tl.store(sums + index * parts_each + part, tl.full([ROWS], float("-inf"), tl.float32), mask=is_row)
    if HAS_WINDOW:
        begin = tl.maximum(context - count + first - window + 1, 0) // KEYS * KEYS
    low, high = begin, end  # this program's part
    if SPLIT:
        length = tl.cdiv(tl.cdiv(end - begin, KEYS), splits) * KEYS
        low = begin + split * length
        high = tl.minimum(low + length, end)
        if low >= end:
            place = index * parts_each + first_part + split
            tl.store(sums + place, tl.full([ROWS], float("-inf"), tl.float32), mask=is_row)
            return
    # Up to here all rows see all keys, so that nothing need be masked.
    clear = low
    if not HAS_WINDOW:
        clear = low + (tl.minimum(seen, high) - low) // KEYS * KEYS
        clear = tl.maximum(clear, low)

    dim = tl.arange(0, KEY_LANES)
    query = tl.load(
        queries + token.to(tl.int64)[:, None] * query_stride + head[:, None] * KEY_DIM + dim[None, :],
        mask=is_row[:, None] & (dim < KEY_DIM)[None, :],
        other=0.0,
    )
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, VALUE_LANES], tl.float32)
    if sinks is not None and split == 0:
        # A key of its own without a value, which is counted once.
        largest = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2_E
        total = total + 1.0

    if members is not None:
        sequence = tl.load(members + start)  # all of them have the same blocks
    table = block_tables + sequence.to(tl.int64) * table_stride
    for at in tl.range(low, clear, KEYS):
        largest, total, result = _attend(
            query, keys, values, table, at, end, kv_head, position, largest, total, result, scale, softcap, window,
            KV_HEADS, KEY_DIM, VALUE_DIM, KEY_LANES, VALUE_LANES, BLOCK, KEYS, False, False, HAS_SOFTCAP,
        )  # fmt: skip
    for at in tl.range(clear, high, KEYS):
        largest, total, result = _attend(
            query, keys, values, table, at, end, kv_head, position, largest, total, result, scale, softcap, window,
            KV_HEADS, KEY_DIM, VALUE_DIM, KEY_LANES, VALUE_LANES, BLOCK, KEYS, True, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip

    # A row of a part may have seen nothing, with a window: then its sum is 0, and its logarithm -inf.
    result = result / tl.where(total > 0, total, 1.0)[:, None]
    if SPLIT:
        index = index * parts_each + first_part + split
        tl.store(sums + index, largest + tl.log2(total), mask=is_row)
    column = tl.arange(0, VALUE_LANES)
    tl.store(
        parts + index[:, None] * VALUE_DIM + column[None, :],
        result.to(parts.dtype.element_ty),
        mask=is_row[:, None] & (column < VALUE_DIM)[None, :],
    )


@triton.jit
def _sequence_of(tile, query_starts, sequences, TOKENS: tl.constexpr):
    """The sequence whose tile it is. Sequence s has the tiles from query_starts[s] // TOKENS + s on.

    That leaves room for the last, partly filled tile of each without knowing how many queries each has.
    """
    low, high = 0, sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_starts + middle) // TOKENS + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _attend(
    query, keys, values, table, at, end, kv_head, position, largest, total, result, scale, softcap, window,
    KV_HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, KEY_LANES: tl.constexpr,
    VALUE_LANES: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Take in the keys `at` to `at + KEYS`: the new largest score, sum and weighted values of each row.

    MASKED: some are behind the end of the context, or some rows do not see them.
    """
    key_position = at + tl.arange(0, KEYS)
    there = key_position < end
    block = tl.load(table + key_position // BLOCK, mask=there, other=0).to(tl.int64)
    place = (block * KV_HEADS + kv_head) * BLOCK + key_position % BLOCK

    key = _rows(keys, place, there, KEY_DIM, KEY_LANES, MASKED).to(query.dtype)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    if HAS_SOFTCAP:
        # tanh, of natural units
        turned = tl.exp(-2.0 * tl.abs(scores * scale / (LOG2_E * softcap)))
        scores = tl.where(scores < 0, -1.0, 1.0) * (1.0 - turned) / (1.0 + turned) * softcap * LOG2_E
    else:
        scores = scores * scale
    if MASKED:
        visible = key_position[None, :] <= position[:, None]
        if HAS_WINDOW:
            visible = visible & (key_position[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))

    larger = tl.maximum(largest, tl.max(scores, 1))
    # Where nothing was visible so far, -inf minus -inf would be no number.
    shift = tl.where(larger == float("-inf"), 0.0, larger) if MASKED else larger
    weights = tl.exp2(scores - shift[:, None])
    shrink = tl.exp2(largest - shift)
    value = _rows(values, place, there, VALUE_DIM, VALUE_LANES, MASKED).to(query.dtype)
    result = tl.dot(weights.to(value.dtype), value, result * shrink[:, None], input_precision="ieee")
    return larger, total * shrink + tl.sum(weights, 1), result


@triton.jit
def _rows(cache, place, there, DIM: tl.constexpr, LANES: tl.constexpr, MASKED: tl.constexpr):
    """Rows `place` of [rows, DIM] as a tile of LANES columns. MASKED: 0 instead of what is not `there`.

    What a block holds behind the context may be anything, and 0 times infinity is no number.
    """
    column = tl.arange(0, LANES)
    address = cache + place[:, None] * DIM + column[None, :]
    if MASKED:
        return tl.load(address, mask=there[:, None] & (column < DIM)[None, :], other=0.0)
    if DIM != LANES:
        return tl.load(address, mask=(column < DIM)[None, :], other=0.0)
    return tl.load(address)
