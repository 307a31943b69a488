"""A planned step as numbers: the new tokens of all requests behind one another, and where each of them stands."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Chunk
from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch


@dataclass(slots=True)
class Layout:
    """A flat batch on the host; all fields but the tokens are those of `AttentionBatch`."""

    tokens: np.ndarray
    """[T] int64"""
    positions: np.ndarray
    slots: np.ndarray
    block_tables: np.ndarray
    query_starts: np.ndarray
    context_lengths: np.ndarray

    def to(self, device: torch.device) -> tuple[Tensor, AttentionBatch]:
        """Tokens and their batch."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        return tensor(self.tokens), AttentionBatch(
            positions=tensor(self.positions),
            slots=tensor(self.slots),
            block_tables=tensor(self.block_tables),
            query_starts=tensor(self.query_starts),
            context_lengths=tensor(self.context_lengths),
            longest_query=int(np.diff(self.query_starts).max()),
            longest_context=int(self.context_lengths.max()),
        )


def lay_out(plan: Sequence[Chunk]) -> Layout:
    total = sum(chunk.count for chunk in plan)
    tables = [_lease_table(chunk.request) for chunk in plan]
    tokens = np.empty(total, dtype=np.int64)
    positions = np.empty(total, dtype=np.int64)
    blocks = np.empty(total, dtype=np.int64)
    block_tables = np.zeros((len(plan), max(map(len, tables))), dtype=np.int32)
    query_starts = np.zeros(len(plan) + 1, dtype=np.int32)
    context_lengths = np.empty(len(plan), dtype=np.int32)
    at = 0
    for index, ((request, start, count), table) in enumerate(zip(plan, tables, strict=True)):
        block_tables[index, : len(table)] = table
        if count == 1:
            tokens[at] = request.tokens[start]
            positions[at] = start
            blocks[at] = table[start // BLOCK_SIZE]
        else:
            span = slice(at, at + count)
            tokens[span] = request.tokens[start : start + count]
            positions[span] = np.arange(start, start + count)
            blocks[span] = block_tables[index, positions[span] // BLOCK_SIZE]
        at += count
        query_starts[index + 1] = at
        context_lengths[index] = start + count
    slots = blocks * BLOCK_SIZE + positions % BLOCK_SIZE
    return Layout(tokens, positions, slots, block_tables, query_starts, context_lengths)


def nobodys(counts: Sequence[int], context: int, block: int) -> Layout:
    """The last `counts` tokens of sequences of `context` that have but one block, over and over again."""
    positions = np.concatenate([np.arange(context - count, context) for count in counts])
    return Layout(
        tokens=np.zeros(len(positions), dtype=np.int64),
        positions=positions,
        slots=block * BLOCK_SIZE + positions % BLOCK_SIZE,
        block_tables=np.full((len(counts), -(-context // BLOCK_SIZE)), block, dtype=np.int32),
        query_starts=np.cumsum([0, *counts], dtype=np.int32),
        context_lengths=np.full(len(counts), context, dtype=np.int32),
    )


def _lease_table(request: Request) -> list[int]:
    assert request.lease is not None, "a request in the plan has a lease"
    return request.lease.table
