"""A step's spans as numbers on the device: the new tokens of all requests behind one another, and where each stands.

What the host has to say of a step is written into one piece of memory, an *arena*, goes to the device in one copy, and
is spread there (`Kernels.spread`) to tensors that stay where they are. Nothing in this waits for the device. Since the
copy of the last step may still be reading, there are two arenas, which are written in turn.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from headwater_engine.core.step import Span
from headwater_engine.kernels.interface import AttentionBatch, FlatBatch, Kernels, Told
from headwater_engine.kernels.prefixes import Group, as_numbers, as_prefixes, find_groups, size_of
from headwater_engine.sampling.rows import WORDS, Numbers, SamplingRows, numbers_of
from headwater_engine.worker.seats import Seats, ranges

Words = TypeVar("Words", np.ndarray, Tensor)


class Mark(Protocol):
    """A place in what the device has to do: `torch.cuda.Event`."""

    def record(self) -> None: ...

    def synchronize(self) -> None:
        """Waits until the device has got there; not at all where it never was recorded."""


class Batch(NamedTuple):
    """A step on the device, in tensors that are the same memory in each step of the same size."""

    flat: FlatBatch
    numbers: Numbers
    """For `SamplingRows.batch`."""


class Size(NamedTuple):
    """Of a step; it decides what lies where."""

    tokens: int
    sequences: int
    rows: int
    """Of logits that give tokens."""
    prefixes: int
    """Numbers that prefixes take which sequences share."""


class _Parts(NamedTuple, Generic[Words]):
    """What is in an arena, all int32. T tokens, S sequences, R rows of logits."""

    numbers: Words
    """[WORDS, R]"""
    query_starts: Words
    """[S + 1]"""
    context_lengths: Words
    """[S]"""
    prefixes: Words
    """As `prefixes.as_numbers` has it, where the kernels want to be told."""
    seats: Words
    """[S]; this and what follows is as in `Told`."""
    rows: Words
    tokens: Words
    owners: Words
    rest: Words
    """Where the new blocks go."""


class _Views(NamedTuple):
    """Of all steps of one size."""

    arenas: list[_Parts[np.ndarray]]
    there: _Parts[Tensor]
    longs: tuple[Tensor, ...]
    """Tokens, positions, slots; rows, their seats."""
    tables: Tensor
    numbers: Numbers


class Outbox:
    """32-bit numbers on their way to the device, in one copy a step."""

    def __init__(self, size: int, device: torch.device, mark: Callable[[], Mark] | None) -> None:
        """`mark` makes marks of the device's stream; None: the device is the host, and nothing need be copied."""
        self.there = torch.zeros(size, dtype=torch.int32, device=device)
        self._pinned = [self.there]
        self._marks: list[Mark] = []
        if mark is not None:
            is_gpu = device.type == "cuda"
            self._pinned = [torch.zeros(size, dtype=torch.int32, pin_memory=is_gpu) for _ in range(2)]
            self._marks = [mark(), mark()]
        self.arenas = [words.numpy() for words in self._pinned]
        self._turn = 0

    def take_turn(self) -> int:
        """Which of the arenas may be written to, and then sent.

        Waits for the copy of the step before the last one, which is long done.
        """
        self._turn = (self._turn + 1) % len(self.arenas)
        if self._marks:
            self._marks[self._turn].synchronize()
        return self._turn

    def send(self, size: int) -> None:
        """The first `size` numbers of it."""
        if self._marks:
            self.there[:size].copy_(self._pinned[self._turn][:size], non_blocking=True)
            self._marks[self._turn].record()


class Inputs:
    """The tensors of all steps of up to `budget` tokens: nobody makes them anew."""

    def __init__(self, kernels: Kernels, seats: Seats, budget: int, mark: Callable[[], Mark] | None) -> None:
        device, blocks = kernels.device, seats.on_device.blocks
        most = max(budget, seats.count)
        self._kernels = kernels
        self._seats = seats
        self.shares = kernels.prefix_groups > 0
        """Whether prefixes that sequences share are looked for."""
        self._outbox = Outbox((WORDS + 9) * (most + 4) + 2 * kernels.prefix_groups + 2 * blocks.numel(), device, mark)
        self._longs = torch.zeros(5, most, dtype=torch.long, device=device)
        self._tables = torch.zeros(seats.count, blocks.shape[1], dtype=torch.int32, device=device)
        # Steps that decode have the same few sizes again and again.
        self._views = lru_cache(maxsize=128)(self._cut)

    def lay_out(self, spans: Sequence[Span], rows: SamplingRows, size: int | None = None) -> Batch:
        """The batch of these spans, valid until the next one. With `size`, all spans are of one token that is sampled,
        and nobody's fill it up to so many."""
        known = self._seats.lengths
        numbers = np.array(
            [(span.seat, span.start, span.count, span.sampled, span.start >= known[span.seat]) for span in spans]
        )
        if size is not None:
            idle = np.array([[self._seats.nobody, 0, 1, 1, 0]])
            numbers = np.concatenate([numbers, idle.repeat(size - len(spans), axis=0)])
        seats, starts, counts, sampled, owed = numbers.T
        ends, contexts, news = counts.cumsum(), starts + counts, self._seats.news()
        views = self._views(self._size(int(ends[-1]), len(numbers), int(sampled.sum())))
        decodes = int((counts > 1).argmax()) if counts.max() > 1 else len(counts)
        arena = views.arenas[self._outbox.take_turn()]
        arena.query_starts[0] = 0
        arena.query_starts[1:] = ends
        arena.context_lengths[:] = contexts
        groups = self._groups(seats[:decodes], contexts[:decodes])
        if groups:
            arena.prefixes[:] = as_numbers(groups, len(numbers), self._kernels.prefix_groups)
        arena.seats[:] = seats
        arena.rows[0] = ranges(ends - sampled, sampled)
        arena.rows[1] = seats.repeat(sampled)
        arena.owners[:] = np.arange(len(numbers)).repeat(counts)
        arena.tokens[:] = self._seats.tokens[seats.repeat(counts), ranges(starts, counts)]
        # The first of a span may be known to its seat only, on the device.
        arena.tokens[(ends - counts)[owed > 0]] = -1
        arena.rest[: news.size] = news.reshape(-1)
        rows.pack(arena.rows[1], arena.numbers)
        self._outbox.send(len(self._outbox.there) - len(arena.rest) + news.size)
        batch = self._batch(views, int(counts.max()), int(contexts.max()), decodes, shared=bool(groups))
        there, blocks = views.there, views.there.rest[: news.size].view(news.shape)
        told = Told(there.tokens, there.owners, there.seats, there.rows, blocks)
        self._kernels.spread(told, self._seats.on_device, batch.flat)
        self._seats.told()
        return batch

    def recorded(self, size: int, rows: SamplingRows, *, shared: bool = False) -> Batch:
        """A step of nobody's, to be recorded for all of this size: the tensors are those of each later `lay_out`.

        `shared`: for those in which sequences share prefixes.
        """
        self.lay_out([Span(self._seats.nobody, 0, 1, 1, 0)], rows, size)
        views = self._views(self._size(size, size, size))
        if shared:
            views.there.prefixes.zero_()  # of no group
        return self._batch(views, 1, self._seats.longest, size, shared=shared)

    def _groups(self, seats: np.ndarray, contexts: np.ndarray) -> list[Group]:
        """Of sequences that decode, those that share a prefix."""
        if not self.shares or not len(seats):
            return []
        tables = self._seats.tables(seats, int(contexts.max()))
        return find_groups(tables, contexts, most=self._kernels.prefix_groups)

    def _size(self, tokens: int, sequences: int, rows: int) -> Size:
        return Size(tokens, sequences, rows, size_of(sequences, self._kernels.prefix_groups) if self.shares else 0)

    def _batch(self, views: _Views, longest_query: int, longest_context: int, decodes: int, *, shared: bool) -> Batch:
        tokens, positions, slots, rows, seats = views.longs
        attention = AttentionBatch(
            positions=positions,
            slots=slots,
            block_tables=views.tables,
            query_starts=views.there.query_starts,
            context_lengths=views.there.context_lengths,
            longest_query=longest_query,
            longest_context=longest_context,
            decodes=decodes,
            prefixes=as_prefixes(views.there.prefixes, len(views.there.context_lengths)) if shared else None,
        )
        return Batch(FlatBatch(tokens, attention, rows, seats), views.numbers)

    def _cut(self, size: Size) -> _Views:
        there = _parts(self._outbox.there, size)
        return _Views(
            [_parts(words, size) for words in self._outbox.arenas],
            there,
            (*self._longs[:3, : size.tokens], *self._longs[3:, : size.rows]),
            self._tables[: size.sequences],
            numbers_of(there.numbers),
        )


def _parts(words: Words, size: Size) -> _Parts[Words]:
    """Each begins at 16 bytes, for which kernels are compiled."""
    shapes: tuple[tuple[int, ...], ...] = (
        (WORDS, size.rows),
        (size.sequences + 1,),
        (size.sequences,),
        (size.prefixes,),
        (size.sequences,),
        (2, size.rows),
        (size.tokens,),
        (size.tokens,),
    )
    parts, at = [], 0
    for shape in shapes:
        count = prod(shape)
        parts.append(words[at : at + count].reshape(shape))
        at += -(-count // 4) * 4
    numbers, query_starts, context_lengths, prefixes, seats, rows, tokens, owners = parts
    return _Parts(numbers, query_starts, context_lengths, prefixes, seats, rows, tokens, owners, words[at:])
