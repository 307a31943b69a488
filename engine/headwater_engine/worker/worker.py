"""What a step does, from top to bottom: take in seats, run the model or replay a recorded step, choose tokens.

Nothing here waits for the device, so that the next step can be queued while this one runs. The one place that does is
`wait` of what `sample` returns (`worker/pending.py`).

Every feature of an engine wants a line here. Let it have one elsewhere: this file has at most 250, and a test counts.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from headwater_engine.core.step import Judge, Pending, Result, Seat, Span, Step, TokenMasks
from headwater_engine.distributed.ranks import ALONE, Ranks
from headwater_engine.kernels.interface import Kernels, LayerCache, Recorder, SamplingBatch, Scores
from headwater_engine.kernels.reference_sampling import score
from headwater_engine.kernels.transfer import to_device
from headwater_engine.models.loading import Model
from headwater_engine.sampling.checked import draw_again
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.ranks import bring_together, sample_among
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.sampling.sampler import Drawn
from headwater_engine.worker.device import device_checked
from headwater_engine.worker.graphs import DecodeGraphs, Progress
from headwater_engine.worker.inputs import Batch, Inputs
from headwater_engine.worker.pending import Coming, Home
from headwater_engine.worker.results import Outcome
from headwater_engine.worker.seats import Seats, Sitter

LOGIT_ROWS = 64
"""Rows of logits at a time for prompt log-probabilities: a long prompt times the vocabulary would not fit in memory."""


@dataclass(slots=True)
class Launched:
    """A step whose forward pass is queued."""

    step: Step
    batch: Batch
    rows: Tensor
    """[R, hidden] of the rows that give tokens."""
    hidden: Tensor | None
    """[T, hidden] of all rows, where prompts are scored."""
    size: int | None
    """Of the recorded step that was replayed, with R rows."""


class ModelWorker:
    """A model, the KV caches of its layers, and a row for each request that runs."""

    def __init__(
        self,
        model: Model,
        caches: list[LayerCache],
        kernels: Kernels,
        *,
        seats: int,
        longest: int,
        budget: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """`seats` requests at once, of up to `longest` tokens; `budget` tokens in a step. `ranks` choose tokens
        together."""
        self._model = model
        model.reach(longest)
        self._caches = caches
        self._kernels = kernels
        self._device = kernels.device
        self._ranks = ranks
        self._seats = Seats(seats, longest, kernels.device)
        self._rows = SamplingRows(model.config.vocab_size, kernels.device)
        mark = torch.cuda.Event if kernels.device.type == "cuda" else None
        self._inputs = Inputs(kernels, self._seats, budget, mark)
        self._home = Home(kernels.device)
        self._graphs: DecodeGraphs | None = None
        self._launched: Launched | None = None

    @torch.inference_mode()
    def launch(self, step: Step) -> None:
        self._seats.take(step)
        with device_checked(self._device):
            self._take_rows(step)
            size = None if self._graphs is None else self._graphs.size_for(step.spans)
            batch = self._inputs.lay_out(step.spans, self._rows, size)
            if self._graphs is not None and size is not None:
                shared = batch.flat.attention.prefixes is not None
                rows, hidden = self._graphs.launch(size, shared=shared), None
            else:
                rows, hidden = self._forward(batch, step.spans)
            self._launched = Launched(step, batch, rows, hidden, size)

    @torch.inference_mode()
    def sample(self, masks: TokenMasks | None = None, judge: Judge | None = None) -> Pending:
        launched, self._launched = self._launched, None
        assert launched is not None, "one sample for each launch"
        step = launched.step
        silent = step.silent(masks, judge)
        with device_checked(self._device):
            if masks is not None and masks.seats:
                self._rows.mask(masks.seats, masks.array())
            outcome = Outcome(self._draw(launched, silent, judge), list(self._score(step.spans, launched.hidden)))
            parcel = self._home.send(outcome.tensors())
        sitters = [self._seats.sitter(span.seat) for span in step.spans]
        return Coming(parcel, self._device, partial(self._read, step, silent, outcome, sitters))

    def _read(
        self, step: Step, silent: Set[int], outcome: Outcome, sitters: Sequence[Sitter], arrived: list[Tensor]
    ) -> Result:
        """The result, now that it is here; the host knows the tokens from now on."""
        result = outcome.at_home(arrived).result(step, silent)
        self._seats.append([span.seat for span in step.spans], sitters, result.tokens)
        if step.drafts:  # and only now it is known how many there are
            news = [
                (span.seat, each) for span, tokens in zip(step.spans, result.tokens, strict=True) for each in tokens
            ]
            with torch.inference_mode():
                self._rows.append([seat for seat, _ in news], [token for _, token in news])
        return result

    def _take_rows(self, step: Step) -> None:
        """What a step says of seats, for the sampler. A seat is told to be free also where nobody got to sit on it."""
        for index in step.left:
            self._rows.leave(index)
        for seat in step.seated:
            prompt = len(seat.tokens) - seat.outputs
            said, answer = seat.tokens[:prompt], seat.tokens[prompt:]
            self._rows.seat(seat.index, seat.sampling, said, answer, masked=seat.masked)
        for index, tokens in step.given:
            self._rows.append([index] * len(tokens), tokens)

    def _forward(self, batch: Batch, spans: Sequence[Span]) -> tuple[Tensor, Tensor | None]:
        """Hidden states of the rows to sample from, and of all rows where prompts are scored."""
        tokens, attention, rows, _ = batch.flat
        scored = any(span.scored for span in spans)
        # The last layer computes those rows only, if there is at most one a sequence.
        if scored or len(rows) == len(tokens) or any(span.sampled > 1 for span in spans):
            hidden = self._model.forward(tokens, attention, self._caches)
            return hidden if len(rows) == len(tokens) else hidden[rows], hidden if scored else None
        return self._model.forward(tokens, attention, self._caches, rows), None

    def _draw(self, launched: Launched, silent: set[int], judge: Judge | None) -> list[tuple[Sequence[int], Drawn]]:
        """Rows of logits, and what is drawn from them. Whom the judge leaves without a token is `silent`, too."""
        batch, step = launched.batch, launched.step
        seats = [span.seat for span in step.spans if span.sampled]
        if not seats:
            return []
        if step.drafts:
            assert judge is None
            return list(self._draw_behind_drafts(launched.rows, step.spans, dict(step.drafts)))
        everybody = seats + [self._seats.nobody] * (len(launched.rows) - len(seats))
        wanted = self._rows.logprobs(everybody)
        sampling = self._rows.batch(everybody, batch.numbers, judge.seats if judge is not None else frozenset())
        graphs, size = self._graphs, launched.size
        plain = judge is None and not sampling.changes
        if graphs is not None and size is not None and plain and wanted.max() < 0:
            drawn = Drawn(graphs.sample(size, filters=sampling.filters), None, wanted)
        else:
            logits = self._model.logits(launched.rows)
            drawn = self._sample(logits, sampling, wanted)
            if judge is not None:
                silent |= draw_again(
                    self._kernels, self._rows, logits, sampling, batch.numbers, seats, drawn.tokens, judge
                )
            self._keep(batch, drawn.tokens)
        count = len(seats)
        drawn = Drawn(drawn.tokens[:count], drawn.scores, drawn.wanted[:count])
        heard, said = seats, drawn.tokens
        if silent:
            places = [place for place, seat in enumerate(seats) if seat not in silent]
            heard, said = [seats[place] for place in places], said[to_device(np.array(places, dtype=int), self._device)]
        self._rows.append(heard, said)
        return [(range(count), drawn)]

    def _keep(self, batch: Batch, tokens: Tensor) -> Tensor:
        """The next token of each row, written to the row of its seat, from where the next step takes it."""
        self._seats.on_device.last.index_copy_(0, batch.flat.seats, tokens)
        return tokens

    def _sample(self, logits: Tensor, sampling: SamplingBatch, wanted: np.ndarray | None = None) -> Drawn:
        """`wanted`: as `SamplingRows.logprobs` returns it; None: no row wants any."""
        wanted = np.full(len(logits), -1) if wanted is None else wanted
        return sample_among(self._ranks, self._kernels, logits, sampling, wanted, self._model.config.vocab_size)

    def _draw_behind_drafts(
        self, hidden: Tensor, spans: Sequence[Span], drafts: dict[int, list[int]]
    ) -> Iterator[tuple[Sequence[int], Drawn]]:
        """Behind the nth draft as if all up to that one had been said: one after the other, and then taken back."""
        logits = self._model.logits(hidden)
        spans = [span for span in spans if span.sampled]
        first = list(accumulate((span.sampled for span in spans), initial=0))
        said: list[tuple[list[int], list[int]]] = []
        try:
            for count in range(max(span.sampled for span in spans)):
                deep = [(at + count, span.seat) for at, span in zip(first, spans, strict=False) if span.sampled > count]
                places, seats = [place for place, _ in deep], [seat for _, seat in deep]
                if count:
                    said.append((seats, [drafts[seat][count - 1] for seat in seats]))
                    self._rows.append(*said[-1])
                some = logits[to_device(np.array(places), self._device)]
                yield places, self._sample(some, self._rows.batch(seats), self._rows.logprobs(seats))
        finally:
            for seats, guesses in reversed(said):
                self._rows.retract(seats, guesses)

    def _score(self, spans: Sequence[Span], hidden: Tensor | None) -> Iterator[tuple[int, Scores]]:
        """Log-probabilities of the prompt tokens behind the rows of `hidden`, by places of spans."""
        first = 0
        for place, span in enumerate(spans):
            if span.scored and hidden is not None:
                sitter = self._seats.sitter(span.seat)
                k = sitter.params.prompt_logprobs
                assert k is not None
                for row in range(0, span.scored, LOGIT_ROWS):
                    count = min(LOGIT_ROWS, span.scored - row)
                    logits = self._model.logits(hidden[first + row : first + row + count])
                    logits = bring_together(self._ranks, logits, self._model.config.vocab_size)
                    behind = sitter.prompt[span.start + row + 1 :][: len(logits)]
                    yield place, score(logits, to_device(np.array(behind), self._device), k)
            first += span.count

    @torch.inference_mode()
    def record(self, record: Recorder, sizes: Sequence[int], *, spare_block: int, tell: Progress) -> None:
        """Record decoding steps of these sizes, the largest first; `spare_block` is no request's."""
        nobody = self._seats.nobody
        seat = Seat(nobody, [0], 0, SamplingParams(max_tokens=1, temperature=0))
        step = Step(0, [nobody], [seat], [(nobody, [spare_block])], [], [])
        self._seats.take(step)
        self._take_rows(step)
        self._graphs = DecodeGraphs(
            lambda batch: self._model.forward(batch.flat.tokens, batch.flat.attention, self._caches),
            lambda hidden, batch, sampling: self._keep(
                batch, self._sample(self._model.logits(hidden), sampling).tokens
            ),
            self._inputs,
            self._rows,
            record,
            sizes,
            tell,
        )
