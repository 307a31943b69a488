"""From what the host says of a step to what the model takes: one copy comes in, and this spreads it.

What changes with a step is a few numbers for each token and sequence. The rest follows from them and from rows that the
device keeps by seat: a block table that grows by one block in 16 steps need not come anew in each, and a token that was
sampled a moment ago never leaves the device on its way to the next step. The reference is `reference_inputs.py`.

Blocks that are new go into the seats' rows first, by a launch of their own: those that follow read them.
"""

import triton
import triton.language as tl

from headwater_engine.kernels.interface import BLOCK_SIZE, FlatBatch, SeatTables, Told

_LANES = 256
"""Numbers that a program takes at a time."""


def spread(told: Told, tables: SeatTables, batch: FlatBatch) -> None:
    """See `Kernels.spread`."""
    attention, count = batch.attention, told.blocks.shape[1]
    if count:
        _take_kernel[(triton.cdiv(count, _LANES),)](*told.blocks, tables.blocks, count, LANES=_LANES)
    programs = triton.cdiv(len(told.tokens), _LANES)
    _spread_kernel[(programs + len(told.seats),)](
        told.tokens,
        told.owners,
        told.seats,
        *told.rows,
        tables.blocks,
        tables.last,
        attention.query_starts,
        attention.context_lengths,
        batch.tokens,
        attention.positions,
        attention.slots,
        attention.block_tables,
        batch.rows,
        batch.seats,
        len(told.tokens),
        told.rows.shape[1],
        programs,
        tables.blocks.stride(0),
        attention.block_tables.stride(0),
        BLOCK=BLOCK_SIZE,
        LANES=_LANES,
    )


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["places", "news"])
def _take_kernel(places, news, table, count, LANES: tl.constexpr):
    at = tl.program_id(0) * LANES + tl.arange(0, LANES)
    place = tl.load(places + at, mask=at < count, other=0)
    tl.store(table + place, tl.load(news + at, mask=at < count, other=0), mask=at < count)


@triton.jit(
    do_not_specialize=["tokens_count", "rows_count", "programs"],
    do_not_specialize_on_alignment=["row_places", "row_seats"],
)
def _spread_kernel(
    tokens,  # [T]
    owners,  # [T]
    seats,  # [S]
    row_places,  # [R]
    row_seats,  # [R]
    table,  # [seats + 1, blocks]
    last,  # [seats + 1]
    query_starts,  # [S + 1]
    context_lengths,  # [S]
    to_tokens,  # [T], as all that follow
    to_positions,
    to_slots,
    to_tables,  # [S, blocks]
    to_rows,  # [R]
    to_seats,  # [R]
    tokens_count,
    rows_count,
    programs,  # that take tokens; those behind them take a sequence's table each
    table_stride,
    to_stride,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    if tl.program_id(0) >= programs:
        sequence = (tl.program_id(0) - programs).to(tl.int64)
        blocks = tl.cdiv(tl.load(context_lengths + sequence), BLOCK)
        source = table + tl.load(seats + sequence).to(tl.int64) * table_stride
        for first in range(0, blocks, LANES):
            at = first + lane
            tl.store(to_tables + sequence * to_stride + at, tl.load(source + at, mask=at < blocks), mask=at < blocks)
        return
    at = tl.program_id(0) * LANES + lane
    inside = at < tokens_count
    owner = tl.load(owners + at, mask=inside, other=0)
    seat = tl.load(seats + owner, mask=inside, other=0).to(tl.int64)
    position = tl.load(context_lengths + owner, mask=inside, other=0) + at
    position -= tl.load(query_starts + owner + 1, mask=inside, other=0)
    block = tl.load(table + seat * table_stride + position // BLOCK, mask=inside, other=0).to(tl.int64)
    token = tl.load(tokens + at, mask=inside, other=0).to(tl.int64)
    owed = tl.load(last + seat, mask=inside & (token < 0), other=0)
    tl.store(to_tokens + at, tl.where(token < 0, tl.maximum(owed, 0), token), mask=inside)
    tl.store(to_positions + at, position.to(tl.int64), mask=inside)
    tl.store(to_slots + at, block * BLOCK + position % BLOCK, mask=inside)
    is_row = at < rows_count  # there are no more rows than tokens
    tl.store(to_rows + at, tl.load(row_places + at, mask=is_row).to(tl.int64), mask=is_row)
    tl.store(to_seats + at, tl.load(row_seats + at, mask=is_row).to(tl.int64), mask=is_row)
