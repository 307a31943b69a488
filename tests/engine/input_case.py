"""Steps of made-up seats, laid out by kernels, and by a loop over their spans."""

import random
from dataclasses import dataclass, field

import torch

from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.kernels.interface import BLOCK_SIZE, Kernels
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import WORDS, SamplingRows
from headwater_engine.worker.inputs import Batch, Inputs, Mark
from headwater_engine.worker.seats import Seats

SEATS, LONGEST, SPARE = 5, 300, 999


@dataclass
class Row:
    """What is known of a seat: its tokens, of which the last `owed` are only on the device."""

    tokens: list[int]
    blocks: list[int]
    params: SamplingParams
    owed: int = 0


@dataclass
class Layouts:
    """Seats that come and go, and steps of them."""

    kernels: Kernels
    seed: int
    mark: type[Mark] | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.seats = Seats(SEATS, LONGEST, self.kernels.device)
        self.sampling = SamplingRows(100, self.kernels.device)
        self.inputs = Inputs(self.kernels, self.seats, SEATS * LONGEST, self.mark)
        nobody = Seat(SEATS, [0], 0, SamplingParams(max_tokens=1, temperature=0))
        self._tell([nobody], [(SEATS, [SPARE])])
        self.addresses: dict[tuple[int, int, int], tuple[int, ...]] = {}

    def _tell(self, seated: list[Seat], blocks: list[tuple[int, list[int]]]) -> None:
        self.number += 1
        self.seats.take(Step(self.number, left=[], seated=seated, blocks=blocks, drafts=[], spans=[]))
        for seat in seated:
            self.sampling.leave(seat.index)
            self.sampling.seat(seat.index, seat.sampling, seat.tokens)

    def sit_down(self) -> None:
        """On some seats, whoever sits there."""
        seated, blocks = [], []
        for index in self.rng.sample(range(SEATS), self.rng.randint(1, SEATS)):
            tokens = [self.rng.randrange(100) for _ in range(self.rng.randint(1, LONGEST - 2))]
            table = [self.rng.randrange(500) for _ in range(-(-len(tokens) // BLOCK_SIZE))]
            params = SamplingParams(max_tokens=9, temperature=self.rng.choice((0, 1)), top_k=self.rng.choice((0, 3)))
            self.rows[index] = Row(tokens, table, params)
            seated.append(Seat(index, tokens, 0, params))
            cut = self.rng.randint(0, len(table))
            blocks += [(index, table[:cut]), (index, table[cut:])]
        self._tell(seated, blocks)

    def grow(self) -> None:
        """Some get a token that the host does not know, or all that it does."""
        for index, row in self.rows.items():
            if row.owed:
                sitter = self.seats.sitter(index)
                self.seats.append([index], [sitter], [row.tokens[-1:]])
                row.owed = 0
            elif len(row.tokens) < LONGEST and self.rng.random() < 0.7:
                row.tokens.append(self.rng.randrange(100))
                row.owed = 1
                self.seats.on_device.last[index] = row.tokens[-1]
                if len(row.tokens) > len(row.blocks) * BLOCK_SIZE:
                    row.blocks.append(self.rng.randrange(500))
                    self._tell([], [(index, row.blocks[-1:])])

    def mixed(self) -> None:
        """A step of any spans: those that owe a token compute it, others some of theirs."""
        spans = []
        for index in self.rng.sample(sorted(self.rows), self.rng.randint(1, len(self.rows))):
            row = self.rows[index]
            start = len(row.tokens) - 1 if row.owed else self.rng.randrange(len(row.tokens))
            count = self.rng.randint(1, len(row.tokens) - start)
            spans.append(Span(index, start, count, self.rng.randint(0, count), 0))
        self._check(spans, self.inputs.lay_out(spans, self.sampling))

    def decoding(self) -> None:
        """A step of the last token of some, filled up by nobody's."""
        chosen = self.rng.sample(sorted(self.rows), self.rng.randint(1, len(self.rows)))
        spans = [Span(index, len(self.rows[index].tokens) - 1, 1, 1, 0) for index in chosen]
        size = self.rng.randint(len(spans), SEATS)
        batch = self.inputs.lay_out(spans, self.sampling, size)
        self._check(spans, batch, size)
        idle = batch.flat.attention.slots[len(spans) :].cpu()
        assert (idle == SPARE * BLOCK_SIZE).all(), "a row of nobody's writes to a block of somebody's"
        recorded = self.inputs.recorded(size, self.sampling)
        for ours, theirs in zip(_tensors(batch), _tensors(recorded), strict=True):
            assert ours.data_ptr() == theirs.data_ptr() and ours.shape == theirs.shape

    def _check(self, spans: list[Span], batch: Batch, size: int | None = None) -> None:
        idle = (size or len(spans)) - len(spans)
        nobody = Row([0], [SPARE], SamplingParams(max_tokens=1, temperature=0))
        rows = self.rows | {SEATS: nobody}
        spans = [*spans, *[Span(SEATS, 0, 1, 1, 0)] * idle]
        places = [(span.seat, span.start + n) for span in spans for n in range(span.count)]
        flat, attention = batch.flat, batch.flat.attention
        assert flat.tokens.tolist() == [rows[seat].tokens[at] for seat, at in places]
        assert attention.positions.tolist() == [at for _, at in places]
        assert attention.slots.tolist() == [
            rows[seat].blocks[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for seat, at in places
        ]
        contexts = [span.start + span.count for span in spans]
        assert attention.context_lengths.tolist() == contexts
        assert attention.longest_context == max(contexts)
        assert attention.longest_query == max(span.count for span in spans)
        ends = [sum(span.count for span in spans[: n + 1]) for n in range(len(spans))]
        assert attention.query_starts.tolist() == [0, *ends]
        sampled = [(end - span.sampled + n, span.seat) for span, end in zip(spans, ends, strict=True)
                   for n in range(span.sampled)]  # fmt: skip
        assert list(zip(flat.rows.tolist(), flat.seats.tolist(), strict=True)) == sampled
        assert attention.block_tables.is_contiguous()
        for span, context, table in zip(spans, contexts, attention.block_tables.tolist(), strict=True):
            needed = -(-context // BLOCK_SIZE)
            assert table[:needed] == rows[span.seat].blocks[:needed]
        seats = [seat for _, seat in sampled]
        ours, theirs = (self.sampling.batch(seats, words) for words in (batch.numbers, None))
        assert batch.numbers.words.shape == (WORDS, len(seats))
        for name in ("inverse_temperatures", "keys", "top_k", "top_p", "min_weight"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert ours.filters == theirs.filters


def _tensors(batch: Batch) -> list[torch.Tensor]:
    flat, attention = batch.flat, batch.flat.attention
    return [
        flat.tokens,
        flat.rows,
        flat.seats,
        batch.numbers.words,
        attention.positions,
        attention.slots,
        attention.block_tables,
        attention.query_starts,
        attention.context_lengths,
    ]
