"""What a step does, from top to bottom: take in seats, run the model or replay a recorded step, choose tokens.

Every feature of an engine wants a line here. Let it have one elsewhere: this file has at most 250, and a test counts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.core.step import Pending, Result, Span, Step
from headwater_engine.distributed.ranks import ALONE, Ranks
from headwater_engine.errors import DeviceError
from headwater_engine.kernels.interface import Kernels, LayerCache
from headwater_engine.models.loading import Model
from headwater_engine.sampling.logprobs import token_logprobs
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.sampling.sampler import Drawn, Sampled, drawn_elsewhere, sample, warm_up
from headwater_engine.worker.graphs import DecodeGraphs, Recorder
from headwater_engine.worker.inputs import Inputs, lay_out, nobodys
from headwater_engine.worker.pending import Arrived
from headwater_engine.worker.seats import Seats

LOGIT_ROWS = 64
"""Rows of logits at a time for prompt log-probabilities: a long prompt times the vocabulary would not fit in memory."""


@dataclass(slots=True)
class Launched:
    """A step whose forward pass is queued."""

    step: Step
    logits: Tensor | None
    """[R, vocabulary] float32 of the rows that give tokens; None: there are none."""
    hidden: Tensor | None
    """[T, hidden] of all rows, where prompts are scored."""


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
        ranks: Ranks = ALONE,
    ) -> None:
        """`seats` requests at once, of up to `longest` tokens. The first of `ranks` chooses tokens for all."""
        self._model = model
        self._caches = caches
        self._kernels = kernels
        self._device = kernels.device
        self._ranks = ranks
        self._seats = Seats(seats, longest)
        self._rows = SamplingRows(model.config.vocab_size, kernels.device)
        self._graphs: DecodeGraphs | None = None
        self._launched: Launched | None = None

    @torch.inference_mode()
    def launch(self, step: Step) -> None:
        self._seats.take(step)
        with self._device_checked():
            self._take_rows(step)
            inputs = lay_out(step.spans, self._seats)
            scores = any(span.scored for span in step.spans)
            logits, hidden = None, None
            if self._graphs is not None and all(span.count == span.sampled == 1 for span in step.spans):
                logits = self._graphs.run(inputs)
            if logits is None:
                rows, hidden = self._forward(inputs, step.spans, whole=scores)
                logits = self._model.logits(rows) if len(rows) else None
            self._launched = Launched(step, logits, hidden if scores else None)

    @torch.inference_mode()
    def sample(self) -> Pending:
        launched, self._launched = self._launched, None
        assert launched is not None, "one sample for each launch"
        with self._device_checked():
            sampled = self._choose(launched)
            result = self._accept(launched.step, sampled)
            if launched.hidden is not None:
                self._score(launched.step.spans, launched.hidden, result)
            return Arrived(result)

    def _forward(self, inputs: Inputs, spans: Sequence[Span], *, whole: bool) -> tuple[Tensor, Tensor]:
        """Hidden states of the rows to sample from, and of all rows if `whole` says that somebody needs them."""
        tokens, batch = inputs.to(self._device)
        rows = torch.from_numpy(inputs.sampled).to(self._device)
        # The last layer computes those rows only, if there is at most one a sequence.
        if whole or len(rows) == len(tokens) or any(span.sampled > 1 for span in spans):
            hidden = self._model.forward(tokens, batch, self._caches)
            return hidden if len(rows) == len(tokens) else hidden[rows], hidden
        hidden = self._model.forward(tokens, batch, self._caches, rows)
        return hidden, hidden

    def _take_rows(self, step: Step) -> None:
        """What a step says of seats, for the sampler. A seat is told to be free also where nobody got to sit on it."""
        for index in step.left:
            self._rows.leave(index)
        for seat in step.seated:
            prompt = len(seat.tokens) - seat.outputs
            self._rows.seat(seat.index, seat.sampling, seat.tokens[:prompt], seat.tokens[prompt:])

    def _choose(self, launched: Launched) -> list[Sampled]:
        """A token for each row of logits."""
        if launched.logits is None:
            return []
        spans = [span for span in launched.step.spans if span.sampled]
        if launched.step.drafts:
            return self._choose_behind_drafts(launched.logits, spans, dict(launched.step.drafts))
        return self._draw(launched.logits, [span.seat for span in spans]).results()

    def _choose_behind_drafts(
        self, logits: Tensor, spans: Sequence[Span], drafts: dict[int, list[int]]
    ) -> list[Sampled]:
        """Behind the nth draft as if all up to that one had been said: one after the other, and then taken back."""
        chosen: dict[int, Sampled] = {}
        first = list(accumulate((span.sampled for span in spans), initial=0))
        said: list[tuple[list[int], list[int]]] = []
        try:
            for count in range(max(span.sampled for span in spans)):
                deep = [(at + count, span.seat) for at, span in zip(first, spans, strict=False) if span.sampled > count]
                places, seats = [place for place, _ in deep], [seat for _, seat in deep]
                if count:
                    said.append((seats, [drafts[seat][count - 1] for seat in seats]))
                    self._rows.append(*said[-1])
                sampled = self._draw(logits[places] if len(logits) else logits, seats).results()
                chosen.update(zip(places, sampled, strict=True))
        finally:
            for seats, guesses in reversed(said):
                self._rows.retract(seats, guesses)
        return [chosen[place] for place in range(len(chosen))]

    def _draw(self, logits: Tensor, seats: Sequence[int]) -> Drawn:
        """On all ranks what the first one draws; only it has logits."""
        if self._ranks.rank:
            return drawn_elsewhere(self._ranks.tell(torch.empty(len(seats), dtype=torch.long, device=self._device)))
        drawn = sample(self._kernels, logits, self._rows, seats)
        self._ranks.tell(drawn.tokens)
        return drawn

    def _accept(self, step: Step, sampled: Sequence[Sampled]) -> Result:
        """Drafts hold as long as they are what is sampled in their place; behind them comes one token more.

        So an answer is the same with drafts and without.
        """
        drafts = dict(step.drafts)
        result = Result([])
        at = 0
        for place, span in enumerate(step.spans):
            tokens: list[int] = []
            rows, at = sampled[at : at + span.sampled], at + span.sampled
            for row, guess in zip(rows, [*drafts.get(span.seat, ()), None], strict=False):
                if row.error is not None:
                    result.errors[place] = row.error
                    break
                tokens.append(row.token)
                if row.logprobs is not None:
                    result.logprobs.setdefault(place, []).append(row.logprobs)
                if row.token != guess:
                    break
            result.tokens.append(tokens)
        self._seats.append([span.seat for span in step.spans], result.tokens)
        news = [(span.seat, each) for span, tokens in zip(step.spans, result.tokens, strict=True) for each in tokens]
        self._rows.append([seat for seat, _ in news], [token for _, token in news])
        return result

    def _score(self, spans: Sequence[Span], hidden: Tensor, result: Result) -> None:
        first = 0
        for place, span in enumerate(spans):
            if span.scored:
                result.prompt_logprobs[place] = self._score_prompt(span, hidden[first : first + span.scored])
            first += span.count

    def _score_prompt(self, span: Span, hidden: Tensor) -> list[TokenLogprobs]:
        """Log-probabilities of the prompt tokens behind each row of `hidden`."""
        sitter = self._seats.sitter(span.seat)
        k = sitter.params.prompt_logprobs
        assert k is not None
        scores = []
        for row in range(0, len(hidden), LOGIT_ROWS):
            logits = self._model.logits(hidden[row : row + LOGIT_ROWS])
            start = span.start + row + 1
            scores += token_logprobs(logits, sitter.prompt[start : start + len(logits)], k)
        return scores

    @torch.inference_mode()
    def warm_up(
        self, *, budget: int, sequences: int, longest: int, spare_block: int, record: Recorder | None = None
    ) -> None:
        """Steps of each kind, so that no request waits until a GPU's kernels are compiled and its memory is taken.

        `budget` tokens of a step, `sequences` at once, `longest` context; `spare_block` is no request's. With `record`,
        decoding steps are recorded, where the model can be.
        """
        prompt = min(budget, longest)
        for counts, context in (([prompt], prompt), ([prompt], longest), ([1], longest), ([1] * sequences, 1)):
            inputs = nobodys(counts, context, spare_block)
            tokens, batch = inputs.to(self._device)
            rows = torch.from_numpy(inputs.sampled).to(self._device)
            warm_up(self._kernels, self._model.logits(self._model.forward(tokens, batch, self._caches, rows)))
        if record is not None and self._model.recordable:
            self._graphs = DecodeGraphs(
                lambda tokens, batch: self._model.logits(self._model.forward(tokens, batch, self._caches)),
                record,
                self._device,
                most=sequences,
                longest=longest,
                spare_block=spare_block,
            )

    @contextmanager
    def _device_checked(self) -> Iterator[None]:
        """Raises DeviceError where the device cannot go on: a GPU that failed answers every further call with that."""
        try:
            yield
        except Exception:
            if self._device.type == "cuda":
                try:
                    torch.cuda.synchronize(self._device)
                except RuntimeError as error:
                    raise DeviceError(f"The GPU has failed: {str(error).splitlines()[0]}") from error
            raise
