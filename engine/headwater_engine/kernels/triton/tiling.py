"""Into which tiles attention cuts its work: from sizes that the host knows, so that nothing waits for the GPU.

Nothing is tried out at run time either. The numbers are those that were fastest on an H200, or nearly
(benchmarks/gpu/tilings.py); for shared prefixes nobody has seen any yet.
"""

from typing import NamedTuple

import triton
from torch import Tensor

from headwater_engine.kernels.interface import AttentionBatch


class Processors(NamedTuple):
    """What a GPU has for programs."""

    number: int
    shared_memory: int
    """Bytes that a program can have."""


class Tiling(NamedTuple):
    """How the work is cut, and what hardware a program gets."""

    rows: int
    """(token, head) pairs in a tile."""
    keys: int
    """Keys that a program takes at a time."""
    splits: int
    """Parts of each context."""
    warps: int
    """Of 32 threads, a program."""
    stages: int
    """Of what a program does at once: fetch keys and values, compute with those before."""


def choose_tiling(batch: AttentionBatch, queries: Tensor, kv_heads: int, processors: Processors) -> Tiling:
    """Of the sequences of a batch, each by itself."""
    group, alone = queries.shape[1] // kv_heads, batch.longest_query == 1
    rows = max(16 if alone else _most_rows(queries, processors), triton.next_power_of_2(group))
    # As many programs as run at once, four on a processor where they mostly wait for memory; one more would be a second
    # round that most processors wait for.
    room = (4 if alone else 2) * processors.number // (count_tiles(batch, rows, group) * kv_heads)
    return _tiling(rows, 64 if alone else min(rows, 128), _splits(room, batch), queries)


def choose_shared_tiling(batch: AttentionBatch, queries: Tensor, kv_heads: int, processors: Processors) -> Tiling:
    """Of the groups of a batch that share a prefix. How many there are and how large they are, only the GPU knows.

    So there are as many parts as if the batch was one group, and tiles of one size: a kernel is compiled for each.
    """
    group, sequences = queries.shape[1] // kv_heads, len(batch.context_lengths)
    rows = max(_most_rows(queries, processors), triton.next_power_of_2(group))
    # A program with such tiles has a processor for itself.
    room = processors.number // (triton.cdiv(sequences, rows // group) * kv_heads)
    return _tiling(rows, min(rows, 128), _splits(room, batch), queries)


def _most_rows(queries: Tensor, processors: Processors) -> int:
    """Of a tile that is full: as many as its program has room for."""
    row_bytes = _row_bytes(queries)
    if row_bytes <= 256:
        return 128 if processors.shared_memory >= 200_000 else 64
    return 64 if row_bytes <= 512 else 32


def _splits(room: int, batch: AttentionBatch) -> int:
    return max(1, min(room, triton.cdiv(batch.longest_context, 64), 64))


def _tiling(rows: int, keys: int, splits: int, queries: Tensor) -> Tiling:
    row_bytes = _row_bytes(queries)
    if row_bytes > 256:
        keys = 32 if row_bytes <= 512 else 16
    return Tiling(rows, keys, splits, warps=8 if rows >= 128 else 4, stages=2)


def _row_bytes(queries: Tensor) -> int:
    return triton.next_power_of_2(queries.shape[2]) * queries.itemsize


def count_tiles(batch: AttentionBatch, rows: int, group: int) -> int:
    """Tiles of all sequences at most: how many queries each has, only the GPU knows."""
    sequences = len(batch.context_lengths)
    return sequences if batch.longest_query == 1 else len(batch.positions) // (rows // group) + sequences
