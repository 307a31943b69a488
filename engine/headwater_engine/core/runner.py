"""Runs a planned step: builds the flat batch, calls the model, samples.

The only part of the engine's core that knows tensors.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headwater_engine.core.messages import TokenLogprobs
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Chunk
from headwater_engine.errors import DeviceError
from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, LayerCache
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
    def warm_up(self, *, budget: int, sequences: int, longest: int) -> None:
        """Steps of each kind, so that no request waits until a GPU's kernels are compiled and its memory is taken.

        `budget` tokens of a step, `sequences` at once, `longest` context. They write keys and values to block 0 only,
        and nobody reads there what he has not written.
        """
        prompt = min(budget, longest)
        for counts, context in (([prompt], prompt), ([prompt], longest), ([1], longest), ([1] * sequences, 1)):
            tokens, batch = self._made_up(counts, context)
            rows = batch.query_starts[1:].long() - 1
            self._model.logits(self._model.forward(tokens, batch, self._caches, rows)).argmax(-1).tolist()

    def _made_up(self, counts: list[int], context: int) -> tuple[Tensor, AttentionBatch]:
        """The last `counts` tokens of sequences of `context`, all of whose blocks are block 0."""
        positions = np.concatenate([np.arange(context - count, context) for count in counts])
        batch = AttentionBatch(
            positions=self._tensor(positions),
            slots=self._tensor(positions % BLOCK_SIZE),
            block_tables=self._tensor(np.zeros((len(counts), -(-context // BLOCK_SIZE)), dtype=np.int32)),
            query_starts=self._tensor(np.cumsum([0, *counts], dtype=np.int32)),
            context_lengths=self._tensor(np.full(len(counts), context, dtype=np.int32)),
            longest_query=max(counts),
            longest_context=context,
        )
        return self._tensor(np.zeros(len(positions), dtype=np.int64)), batch

    def _check_device(self) -> None:
        """A GPU that failed answers every further call with the error of the first."""
        if self._device.type == "cuda":
            try:
                torch.cuda.synchronize(self._device)
            except RuntimeError as error:
                raise DeviceError(f"The GPU has failed: {str(error).splitlines()[0]}") from error

    def _run(self, plan: Sequence[Chunk]) -> list[Sampled | None]:
        tokens, batch = self._build(plan)
        sampling = [index for index, chunk in enumerate(plan) if chunk.samples]
        last = batch.query_starts[1:].long() - 1
        rows = last[torch.tensor(sampling, dtype=torch.long, device=self._device)]
        if any(chunk.request.wants_prompt_logprobs for chunk in plan):
            hidden = self._model.forward(tokens, batch, self._caches)
            self._add_prompt_logprobs(plan, batch, hidden)
            hidden = hidden[rows]
        else:
            hidden = self._model.forward(tokens, batch, self._caches, rows if len(rows) < len(tokens) else None)
        results: list[Sampled | None] = [None] * len(plan)
        if sampling:
            sampled = self._sampler.sample(self._model.logits(hidden), [plan[index].request for index in sampling])
            for index, result in zip(sampling, sampled, strict=True):
                results[index] = result
        return results

    def _build(self, plan: Sequence[Chunk]) -> tuple[Tensor, AttentionBatch]:
        total = sum(chunk.count for chunk in plan)
        tables = [_lease_table(chunk.request) for chunk in plan]
        tokens = np.empty(total, dtype=np.int64)
        positions = np.empty(total, dtype=np.int64)
        blocks = np.empty(total, dtype=np.int64)
        block_tables = np.zeros((len(plan), max(map(len, tables))), dtype=np.int32)
        query_starts = np.zeros(len(plan) + 1, dtype=np.int32)
        context_lengths = np.empty(len(plan), dtype=np.int32)
        at = 0
        for index, ((request, start, count), table) in enumerate(zip(plan, tables, strict=True)):
            block_tables[index, : len(table)] = table
            if count == 1:
                tokens[at] = request.tokens[start]
                positions[at] = start
                blocks[at] = table[start // BLOCK_SIZE]
            else:
                span = slice(at, at + count)
                tokens[span] = request.tokens[start : start + count]
                positions[span] = np.arange(start, start + count)
                blocks[span] = block_tables[index, positions[span] // BLOCK_SIZE]
            at += count
            query_starts[index + 1] = at
            context_lengths[index] = start + count
        batch = AttentionBatch(
            positions=self._tensor(positions),
            slots=self._tensor(blocks * BLOCK_SIZE + positions % BLOCK_SIZE),
            block_tables=self._tensor(block_tables),
            query_starts=self._tensor(query_starts),
            context_lengths=self._tensor(context_lengths),
            longest_query=max(chunk.count for chunk in plan),
            longest_context=int(context_lengths.max()),
        )
        return self._tensor(tokens), batch

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)

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


def _lease_table(request: Request) -> list[int]:
    assert request.lease is not None, "a request in the plan has a lease"
    return request.lease.table
