"""Decoding steps as CUDA graphs: recorded once for a few batch sizes, replayed with one launch.

A step of an 8B model is some 300 launches, and Python takes longer for them than the GPU for the work. A graph is all
of them as one. It replays the same kernels with the same arguments, so that everything that changes from step to step
lies in buffers that stay where they are (`worker/inputs.py`): the step is written there, then replayed. What the host
decides in between, such as into how many parts attention cuts a context, is decided once, for the longest context.

A step has two recordings, since the host has its say between them: from tokens to hidden states, and from those to the
next tokens. Of the first there are two, since steps in which sequences share a prefix launch more: room for as many
groups as are ever told (`kernels/prefixes.py`). Of the second there are two, with and without top-k, top-p and min-p.
What few requests ask for, penalties, biases and log-probabilities, is not recorded: such a step replays the first part
only.

A batch that has no graph of its size takes the next larger one. The rows that are too many are nobody's: they have a
seat of their own, and write to a spare block that no request ever gets.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from headwater_engine.core.step import Span
from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import Recorder, Replay, SamplingBatch
from headwater_engine.sampling.rows import SamplingRows, plain_batch
from headwater_engine.worker.inputs import Batch, Inputs

Forward = Callable[[Batch], Tensor]
"""The hidden states of a batch of one token a sequence."""
Choose = Callable[[Tensor, Batch, SamplingBatch], Tensor]
"""The tokens that follow, from hidden states."""
Progress = Callable[[float], None]


def ladder(most: int) -> list[int]:
    """Batch sizes to record, the largest first: close where a row is much of a step, 16 apart above."""
    return sorted({size for size in (1, 2, 4, 8, *range(16, most, 16), most) if size <= most}, reverse=True)


class DecodeGraphs:
    """Recorded steps in which each sequence computes one token and samples."""

    def __init__(
        self,
        forward: Forward,
        choose: Choose,
        inputs: Inputs,
        rows: SamplingRows,
        record: Recorder,
        sizes: Sequence[int],
        tell: Progress,
    ) -> None:
        """Records these sizes, the largest first; `tell` is called with the fraction that is recorded.

        Inputs and rows must know of nobody's seat, with a block.
        """
        self._launches: dict[tuple[int, bool], Replay] = {}
        self._samples: dict[tuple[int, bool], Replay] = {}
        # The largest takes the memory that all others find.
        for done, size in enumerate(sizes):
            tell(done / len(sizes))
            batch = inputs.recorded(size, rows)
            self._launches[size, False] = launch = record(lambda batch=batch: forward(batch))  # type: ignore[misc]
            hidden = launch()
            if inputs.shares and size > 1:
                shared = inputs.recorded(size, rows, shared=True)
                self._launches[size, True] = record(
                    lambda hidden=hidden, batch=shared: hidden.copy_(forward(batch))  # type: ignore[misc]
                )
            for filters in (False, True):
                numbers = plain_batch(batch.numbers, filters=filters)
                self._samples[size, filters] = record(
                    lambda hidden=hidden, batch=batch, numbers=numbers: choose(hidden, batch, numbers)  # type: ignore[misc]
                )
        self._sizes = sorted(sizes)

    def size_for(self, spans: Sequence[Span]) -> int | None:
        """Which recording a step takes; None: none is like it."""
        if any(span.count != 1 or span.sampled != 1 or span.scored for span in spans):
            return None
        return next((size for size in self._sizes if size >= len(spans)), None)

    def launch(self, size: int, *, shared: bool = False) -> Tensor:
        """The hidden states [size, hidden] of the batch that was laid out with this size, valid until the next one.

        `shared`: sequences of it share a prefix.
        """
        return self._launches[size, shared]()

    def sample(self, size: int, *, filters: bool) -> Tensor:
        """The tokens [size] that follow the hidden states of that launch."""
        # Copied, since the next replay writes to the same place while these are on their way home.
        return self._samples[size, filters]().clone()


def cuda_recorder() -> Recorder:
    """Graphs that share one pool of memory: only one of them runs at a time. Raises LoadError where one cannot be."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensor]) -> Replay:
        run()  # compiles, and lets cuBLAS choose
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                output = run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise LoadError(f"Steps cannot be recorded: {why}. --enforce-eager serves without that.") from error

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    return record
