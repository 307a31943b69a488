"""The rows of requests that run: what they have said so far and where their keys and values are, by seat.

A row is written once, when its request sits down, and then only grows. So a step costs what is new in it, and not what
all its requests hold. The host has the tokens whose values it knows. The device has the block tables, and of each seat
the token that was sampled last, which the next step may need before the host has seen it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from headwater_engine.core.step import Seat, Step
from headwater_engine.kernels.interface import BLOCK_SIZE, SeatTables
from headwater_engine.sampling.params import SamplingParams


class Sitter(NamedTuple):
    """Who sits on a seat: another one each time that somebody sits down."""

    params: SamplingParams
    prompt: list[int]


class Seats:
    """Rows for `count` requests of up to `longest` tokens, and one for nobody. Rows that nobody has written to take no
    memory on the host."""

    def __init__(self, count: int, longest: int, device: torch.device) -> None:
        blocks = -(-longest // BLOCK_SIZE)
        self.count = count
        self.longest = longest
        self.nobody = count
        """The seat of rows that are there to fill a step up."""
        self.tokens = np.zeros((count + 1, longest + 1), dtype=np.int32)
        """[seats + 1, longest + 1]: all that are known, then drafts. What comes last is never computed."""
        self.lengths = [0] * (count + 1)
        """Tokens that are known, by seat."""
        self.on_device = SeatTables(
            torch.zeros(count + 1, blocks, dtype=torch.int32, device=device),
            torch.zeros(count + 1, dtype=torch.long, device=device),
        )
        self._tables = np.zeros((count + 1, blocks), dtype=np.int32)
        """[seats + 1, blocks of the longest]: KV blocks."""
        self._blocks = [0] * (count + 1)
        self._told = [0] * (count + 1)
        """Of those blocks, what the device has."""
        self._grown: set[int] = set()
        """Seats of which it lacks some."""
        self._sitters: list[Sitter | None] = [None] * (count + 1)

    def take(self, step: Step) -> None:
        """All that a step says of seats."""
        for index in step.left:
            self._sitters[index] = None
        for seat in step.seated:
            self._seat(seat)
        for index, blocks in step.blocks:
            end = self._blocks[index] + len(blocks)
            self._tables[index, self._blocks[index] : end] = blocks
            self._blocks[index] = end
            self._grown.add(index)
        for index, tokens in step.given:
            length = self.lengths[index]
            self.lengths[index] += len(tokens)
            self.tokens[index, length : length + len(tokens)] = tokens
        for index, drafts in step.drafts:
            length = self.lengths[index]
            self.tokens[index, length : length + len(drafts)] = drafts

    def _seat(self, seat: Seat) -> None:
        index, length = seat.index, len(seat.tokens)
        prompt = length - seat.outputs
        self.tokens[index, :length] = seat.tokens
        self.lengths[index] = length
        self._blocks[index] = self._told[index] = 0
        self._sitters[index] = Sitter(seat.sampling, seat.tokens[:prompt])

    def sitter(self, index: int) -> Sitter:
        sitter = self._sitters[index]
        assert sitter is not None, f"nobody sits on {index}"
        return sitter

    def append(self, seats: Sequence[int], sitters: Sequence[Sitter], tokens: Sequence[Sequence[int]]) -> None:
        """Tokens that were sampled, some for each of these seats.

        While they were on their way somebody else may have sat down there, who has nothing to do with them.
        """
        rows, places, values = [], [], []
        for index, sitter, each in zip(seats, sitters, tokens, strict=True):
            if self._sitters[index] is not sitter:
                continue
            for token in each:
                rows.append(index)
                places.append(self.lengths[index])
                values.append(token)
                self.lengths[index] += 1
        self.tokens[rows, places] = values

    def tables(self, seats: np.ndarray, longest: int) -> np.ndarray:
        """Block tables of these seats, for up to `longest` tokens; behind a seat's blocks stands anything."""
        return self._tables[seats, : -(-longest // BLOCK_SIZE)]

    def news(self) -> np.ndarray:
        """What the device does not know of block tables yet, as `Told.blocks` has it: [2, N] int32."""
        if not self._grown:
            return _NO_NEWS
        width = self._tables.shape[1]
        places = [np.arange(self._told[index], self._blocks[index]) + index * width for index in self._grown]
        at = np.concatenate(places).astype(np.int32)
        return np.stack([at, self._tables.reshape(-1)[at]])

    def told(self) -> None:
        """The device knows them now."""
        for index in self._grown:
            self._told[index] = self._blocks[index]
        self._grown.clear()


_NO_NEWS = np.zeros((2, 0), dtype=np.int32)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`counts[n]` numbers from `starts[n]` on, for each n, behind one another: [sum of counts] int64."""
    ends = counts.cumsum()
    return np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)
