"""Runs a planned step: lays out the flat batch, calls the model or replays a recorded step, samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater_engine.core.graphs import DecodeGraphs, Recorder
from headwater_engine.core.layout import Layout, lay_out, nobodys
from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Chunk
from headwater_engine.errors import DeviceError
from headwater_engine.kernels.interface import AttentionBatch, LayerCache
from headwater_engine.models.loading import Model
from headwater_engine.sampling.logprobs import token_logprobs
from headwater_engine.sampling.sampler import Sampled, Sampler

LOGIT_ROWS = 64
"""Rows of logits at a time for prompt log-probabilities: a long prompt times the vocabulary would not fit in memory."""


class Runner:
    """A model, the KV caches of its layers, and a sampler."""

    def __init__(self, model: Model, caches: list[LayerCache], device: torch.device) -> None:
        self._model = model
        self._caches = caches
        self._device = device
        self._sampler = Sampler()
        self._graphs: DecodeGraphs | None = None

    @torch.inference_mode()
    def run(self, plan: Sequence[Chunk]) -> list[Sampled | None]:
        """One result for each chunk: the sampled token, or None where the chunk ends before the last known token.

        Raises DeviceError where the device cannot go on.
        """
        try:
            return self._run(plan)
        except Exception:
            self._check_device()
            raise

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
            tokens, batch = nobodys(counts, context, spare_block).to(self._device)
            rows = batch.query_starts[1:].long() - 1
            self._model.logits(self._model.forward(tokens, batch, self._caches, rows)).argmax(-1).tolist()
        if record is not None and self._model.recordable:
            self._graphs = DecodeGraphs(
                lambda tokens, batch: self._model.logits(self._model.forward(tokens, batch, self._caches)),
                record,
                self._device,
                most=sequences,
                longest=longest,
                spare_block=spare_block,
            )

    def _check_device(self) -> None:
        """A GPU that failed answers every further call with the error of the first."""
        if self._device.type == "cuda":
            try:
                torch.cuda.synchronize(self._device)
            except RuntimeError as error:
                raise DeviceError(f"The GPU has failed: {str(error).splitlines()[0]}") from error

    def _run(self, plan: Sequence[Chunk]) -> list[Sampled | None]:
        layout = lay_out(plan)
        sampling = [index for index, chunk in enumerate(plan) if chunk.samples]
        logits = None
        if self._graphs is not None and len(sampling) == len(plan) == len(layout.tokens):
            logits = self._graphs.run(layout)
        if logits is None:
            hidden = self._forward(plan, layout, sampling)
            logits = self._model.logits(hidden) if sampling else hidden
        results: list[Sampled | None] = [None] * len(plan)
        if sampling:
            sampled = self._sampler.sample(logits, [plan[index].request for index in sampling])
            for index, result in zip(sampling, sampled, strict=True):
                results[index] = result
        return results

    def _forward(self, plan: Sequence[Chunk], layout: Layout, sampling: list[int]) -> Tensor:
        """The hidden states of the last tokens of the chunks `sampling`."""
        tokens, batch = layout.to(self._device)
        last = batch.query_starts[1:].long() - 1
        rows = last[torch.tensor(sampling, dtype=torch.long, device=self._device)]
        if any(chunk.request.wants_prompt_logprobs for chunk in plan):
            hidden = self._model.forward(tokens, batch, self._caches)
            self._add_prompt_logprobs(plan, batch, hidden)
            return hidden[rows]
        return self._model.forward(tokens, batch, self._caches, rows if len(rows) < len(tokens) else None)

    def _add_prompt_logprobs(self, plan: Sequence[Chunk], batch: AttentionBatch, hidden: Tensor) -> None:
        for (request, start, count), first in zip(plan, batch.query_starts.tolist(), strict=False):
            if request.wants_prompt_logprobs:
                scored = min(count, len(request.prompt) - 1 - start)
                request.prompt_logprobs += self._score(request, start, hidden[first : first + max(scored, 0)])

    def _score(self, request: Request, start: int, hidden: Tensor) -> list[TokenLogprobs | None]:
        """Log-probabilities of the prompt tokens behind each row of `hidden`, whose first stands at `start`."""
        scores: list[TokenLogprobs | None] = [None] if start == 0 else []
        k = request.params.prompt_logprobs
        assert k is not None
        for row in range(0, len(hidden), LOGIT_ROWS):
            logits = self._model.logits(hidden[row : row + LOGIT_ROWS])
            targets = request.prompt[start + row + 1 : start + row + 1 + len(logits)]
            scores += token_logprobs(logits, targets, k)
        return scores
