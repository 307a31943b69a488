"""Decoding steps as CUDA graphs: recorded once for a few batch sizes, replayed with one launch.

A step of an 8B model is some 300 launches, and Python takes longer for them than the GPU for the work. A graph is all
of them as one. It replays the same kernels with the same arguments, so that everything that changes from step to step
lies in buffers that stay where they are: the step is written there, then replayed. What the host decides in between,
such as into how many parts attention cuts a context, is decided once, for the longest context.

A batch that has no graph of its size takes the next larger one. The rows that are too many compute a token of nobody:
they write to a spare block that no request ever gets.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch
from headwater_engine.worker.inputs import Inputs

Step = Callable[[Tensor, AttentionBatch], Tensor]
"""Tokens and their batch to logits."""
Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Of what always computes the same way on the same memory: a call that does it again and returns the same tensor."""


def ladder(most: int) -> list[int]:
    """Batch sizes to record, the largest first: close where a row is much of a step, 16 apart above."""
    return sorted({size for size in (1, 2, 4, 8, *range(16, most, 16), most) if size <= most}, reverse=True)


class DecodeGraphs:
    """Recorded steps in which each sequence computes one token and samples."""

    def __init__(
        self, step: Step, record: Recorder, device: torch.device, *, most: int, longest: int, spare_block: int
    ) -> None:
        """Records all sizes up to `most` sequences, of contexts of up to `longest` tokens."""
        self._spare = spare_block
        # A recording knows addresses, and keeps nothing alive: all that a step reads is held here.
        self._numbers = torch.zeros(3, most, dtype=torch.long, device=device)  # tokens, positions, slots
        self._lengths = torch.ones(most, dtype=torch.int32, device=device)
        self._tables = torch.full((most, -(-longest // BLOCK_SIZE)), spare_block, dtype=torch.int32, device=device)
        self._numbers[2] = spare_block * BLOCK_SIZE
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._replays: dict[int, Callable[[], Tensor]] = {}
        for size in ladder(most):  # the largest takes the memory that all others find
            tokens, positions, slots = self._numbers[:, :size].unbind()
            batch = AttentionBatch(
                positions, slots, self._tables[:size], self._starts[: size + 1], self._lengths[:size], 1, longest
            )
            self._replays[size] = record(lambda tokens=tokens, batch=batch: step(tokens, batch))  # type: ignore[misc]
        self._sizes = sorted(self._replays)

    def run(self, inputs: Inputs) -> Tensor | None:
        """Logits of a batch of one token a sequence, [S, vocabulary], valid until the next run; None: too many."""
        count = len(inputs.tokens)
        size = next((size for size in self._sizes if size >= count), None)
        if size is None:
            return None
        numbers, lengths = np.zeros((3, size), dtype=np.int64), np.ones(size, dtype=np.int32)
        tables = np.full((size, inputs.block_tables.shape[1]), self._spare, dtype=np.int32)
        numbers[2, count:] = self._spare * BLOCK_SIZE
        numbers[:, :count] = inputs.tokens, inputs.positions, inputs.slots
        lengths[:count], tables[:count] = inputs.context_lengths, inputs.block_tables
        self._numbers[:, :size].copy_(torch.from_numpy(numbers))
        self._lengths[:size].copy_(torch.from_numpy(lengths))
        self._tables[:size, : tables.shape[1]].copy_(torch.from_numpy(tables))
        return self._replays[size]()[:count]


def cuda_recorder() -> Recorder:
    """Graphs that share one pool of memory: only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        run()  # compiles, and lets cuBLAS choose
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = run()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    return record
