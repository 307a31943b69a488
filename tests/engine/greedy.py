"""Greedy answers of a model through the whole engine: scheduler, prefix cache, worker, sampler; without processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate
from headwater_engine.core.scheduler import Drafter, Scheduler
from headwater_engine.core.step import Worker
from headwater_engine.distributed.ranks import ALONE, Ranks
from headwater_engine.kernels.interface import BLOCK_SIZE, Kernels
from headwater_engine.models.loading import Model
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.worker import ModelWorker


@dataclass(slots=True)
class Case:
    """A model, and what transformers answers with it."""

    model: Model
    kernels: Kernels
    prompts: list[list[int]]
    expected: list[list[int]]


def make_engine(
    model: Model,
    kernels: Kernels,
    blocks: int,
    *,
    reuse: bool,
    max_num_seqs: int = 32,
    max_batched_tokens: int = 512,
    depth: int = 0,
    drafter: Drafter | None = None,
    worker: Worker | None = None,
    jumps: bool = True,
    checks: bool = False,
) -> Engine:
    """With `blocks` of KV cache and one that is nobody's; `reuse` is the prefix cache.

    `worker`: one of `make_worker`, with as many blocks and seats.
    """
    config = model.config
    scheduler = Scheduler(
        PrefixCache(blocks, BLOCK_SIZE, reuse=reuse),
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        drafter=drafter,
    )
    worker = worker or make_worker(model, kernels, blocks, max_num_seqs, budget=max_batched_tokens)
    longest = config.max_positions
    return Engine(
        scheduler,
        worker,
        max_model_len=longest,
        vocab_size=config.vocab_size,
        depth=depth,
        jumps=jumps,
        checks=checks,
    )


def make_worker(
    model: Model, kernels: Kernels, blocks: int, seats: int, ranks: Ranks = ALONE, budget: int = 512
) -> ModelWorker:
    """A rank with its part of `blocks` of KV cache, and of one that is nobody's."""
    caches = [kernels.allocate(blocks + 1, spec) for spec in model.config.caches]
    longest = model.config.max_positions
    return ModelWorker(model, caches, kernels, seats=seats, longest=longest, budget=budget, ranks=ranks)


def greedy_answers(
    engine: Engine, prompts: Sequence[list[int]], count: int, eos: tuple[int, ...] = ()
) -> list[list[int]]:
    """Up to `count` tokens for each prompt, all asked for at once. Checks that the engine gave all blocks back."""
    params = SamplingParams(max_tokens=count, temperature=0, eos_token_ids=eos)
    return answers_to(engine, prompts, [params] * len(prompts))


def answers_to(engine: Engine, prompts: Sequence[list[int]], asked: Sequence[SamplingParams]) -> list[list[int]]:
    """All asked for at once. Checks that the engine gave all blocks back."""
    answers: dict[str, list[int]] = {str(n): [] for n in range(len(prompts))}
    for n, (prompt, params) in enumerate(zip(prompts, asked, strict=True)):
        assert engine.add(Generate(id=str(n), prompt=prompt, params=params)) is None
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            answers[output.id] += output.tokens
    engine.scheduler.check()
    return list(answers.values())
