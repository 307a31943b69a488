"""The rows of requests that run: what they have said so far and where their keys and values are, by seat.

A row is written once, when its request sits down, and then only grows. So a step costs what is new in it, and not what
all its requests hold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headwater_engine.core.step import Seat, Step
from headwater_engine.kernels.interface import BLOCK_SIZE
from headwater_engine.sampling.params import SamplingParams


class Sitter(NamedTuple):
    """What is asked of a request's prompt."""

    params: SamplingParams
    prompt: list[int]


class Seats:
    """Rows for `count` requests of up to `longest` tokens. Rows that nobody has written to take no memory."""

    def __init__(self, count: int, longest: int) -> None:
        self.tokens = np.zeros((count, longest), dtype=np.int32)
        """[seats, longest]: all that are known, then drafts."""
        self.lengths = [0] * count
        """Tokens that are known, by seat."""
        self.tables = np.zeros((count, -(-longest // BLOCK_SIZE)), dtype=np.int32)
        """[seats, blocks of the longest]: KV blocks, then 0."""
        self._blocks = [0] * count
        self._sitters: list[Sitter | None] = [None] * count

    def take(self, step: Step) -> None:
        """All that a step says of seats."""
        for index in step.left:
            self._sitters[index] = None
        for seat in step.seated:
            self._seat(seat)
        for index, blocks in step.blocks:
            end = self._blocks[index] + len(blocks)
            self.tables[index, self._blocks[index] : end] = blocks
            self._blocks[index] = end
        for index, drafts in step.drafts:
            length = self.lengths[index]
            self.tokens[index, length : length + len(drafts)] = drafts

    def _seat(self, seat: Seat) -> None:
        index, length = seat.index, len(seat.tokens)
        prompt = length - seat.outputs
        self.tokens[index, :length] = seat.tokens
        self.lengths[index] = length
        self.tables[index] = 0
        self._blocks[index] = 0
        self._sitters[index] = Sitter(seat.sampling, seat.tokens[:prompt])

    def sitter(self, index: int) -> Sitter:
        sitter = self._sitters[index]
        assert sitter is not None, f"nobody sits on {index}"
        return sitter

    def append(self, seats: Sequence[int], tokens: Sequence[list[int]]) -> None:
        """Tokens that were sampled, some for each of these seats."""
        rows, places = [], []
        for index, each in zip(seats, tokens, strict=True):
            for _ in each:
                rows.append(index)
                places.append(self.lengths[index])
                self.lengths[index] += 1
        self.tokens[rows, places] = [token for each in tokens for token in each]


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`counts[n]` numbers from `starts[n]` on, for each n, behind one another: [sum of counts] int64."""
    ends = counts.cumsum()
    return np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)
