"""A step's spans as numbers: the new tokens of all requests behind one another, and where each of them stands."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater_engine.core.step import Span
from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch
from headwater_engine.worker.seats import Seats, ranges


@dataclass(slots=True)
class Inputs:
    """A flat batch on the host. All fields but the tokens and the rows are those of `AttentionBatch`."""

    tokens: np.ndarray
    """[T] int64"""
    positions: np.ndarray
    slots: np.ndarray
    block_tables: np.ndarray
    query_starts: np.ndarray
    context_lengths: np.ndarray
    sampled: np.ndarray
    """[R] int64: the rows among T whose logits give tokens."""

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
            longest_query=int((self.query_starts[1:] - self.query_starts[:-1]).max()),
            longest_context=int(self.context_lengths.max()),
        )


def lay_out(spans: Sequence[Span], seats: Seats) -> Inputs:
    numbers = np.array([(span.seat, span.start, span.count, span.sampled) for span in spans], dtype=np.int64)
    index, starts, counts, sampled = numbers.T
    ends = counts.cumsum()
    contexts = starts + counts
    owners, positions = np.repeat(index, counts), ranges(starts, counts)
    blocks = seats.tables[owners, positions // BLOCK_SIZE].astype(np.int64)
    return Inputs(
        tokens=seats.tokens[owners, positions].astype(np.int64),
        positions=positions,
        slots=blocks * BLOCK_SIZE + positions % BLOCK_SIZE,
        block_tables=seats.tables[index, : -(-int(contexts.max()) // BLOCK_SIZE)],
        query_starts=np.array([0, *ends.tolist()], dtype=np.int32),
        context_lengths=contexts.astype(np.int32),
        sampled=ranges(ends - sampled, sampled),
    )


def nobodys(counts: Sequence[int], context: int, block: int) -> Inputs:
    """The last `counts` tokens of sequences of `context` that have but one block, over and over again."""
    lengths = np.array(counts, dtype=np.int64)
    positions = ranges(context - lengths, lengths)
    return Inputs(
        tokens=np.zeros(len(positions), dtype=np.int64),
        positions=positions,
        slots=block * BLOCK_SIZE + positions % BLOCK_SIZE,
        block_tables=np.full((len(counts), -(-context // BLOCK_SIZE)), block, dtype=np.int32),
        query_starts=np.cumsum([0, *counts], dtype=np.int32),
        context_lengths=np.full(len(counts), context, dtype=np.int32),
        sampled=lengths.cumsum() - 1,
    )
