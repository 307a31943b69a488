"""Tiny models through the whole engine on a GPU give transformers' greedy tokens: batched, in chunks, preempted.

Every variant of each family by itself: test_models.py. Forms, jumps, penalties and aborts under way: test_overlap.py.
"""

import random
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.kernels import find_device, select
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.graphs import cuda_recorder, ladder
from headwater_engine.worker.trial import run_trial
from headwater_engine.worker.worker import ModelWorker
from tests.engine.greedy import greedy_answers, make_engine, make_worker
from tests.engine.tiny import FAMILIES, flat_batch, make_tiny, reference_greedy

NEW_TOKENS = 24


@pytest.mark.parametrize("family", [*FAMILIES, "olmo2"])
def test_greedy_tokens(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path, **FAMILIES.get(family, {}))
    rng = random.Random(3)
    shared = [rng.randrange(256) for _ in range(40)]
    prompts = [
        [*shared[: rng.choice((0, 17, 40))], *(rng.randrange(256) for _ in range(rng.randint(1, 60)))]
        for _ in range(32)
    ]
    expected = reference_greedy(folder, prompts, NEW_TOKENS)
    kernels = select(torch.float32, find_device("cuda"))
    model = load_model(resolve(str(folder)), kernels=kernels)

    def answers(
        blocks: int, budget: int, reuse: bool, at_once: int = 32, recorded: bool = False
    ) -> tuple[list[list[int]], int]:
        engine = make_engine(
            model, kernels, blocks, max_num_seqs=at_once, max_batched_tokens=budget, reuse=reuse, depth=1
        )
        if recorded:
            worker: ModelWorker = engine._worker  # type: ignore[assignment]
            run_trial(worker, seats=at_once, budget=budget, longest=160)
            if model.recordable:
                worker.record(cuda_recorder(), ladder(at_once), spare_block=blocks, tell=lambda fraction: None)
        return greedy_answers(engine, prompts, NEW_TOKENS), engine.stats().preemptions

    assert answers(400, 512, reuse=False)[0] == expected
    assert answers(400, 37, reuse=True)[0] == expected
    assert answers(400, 37, reuse=True, recorded=True)[0] == expected
    assert answers(64, 512, reuse=False, at_once=1)[0] == expected
    preempted, times = answers(40, 128, reuse=True, recorded=True)
    assert preempted == expected
    assert times > 0


def test_nothing_in_a_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """Launched and sampled, recorded and not; torch says where a call would wait."""
    kernels = select(torch.float32, find_device("cuda"))
    model = load_model(resolve(str(make_tiny("llama", tmp_path))), kernels=kernels)
    worker = make_worker(model, kernels, 20, 4)
    run_trial(worker, seats=4, budget=64, longest=100)
    worker.record(cuda_recorder(), ladder(4), spare_block=20, tell=lambda fraction: None)
    asked = SamplingParams(max_tokens=9, top_p=0.9, presence_penalty=0.5, logprobs=2)
    seated = [Seat(0, [1, 2, 3], 0, asked), Seat(1, [4, 5], 0, SamplingParams(max_tokens=9))]
    prompts = Step(1, [0, 1], seated, [(0, [3]), (1, [4])], [], [Span(0, 0, 3, 1, 0), Span(1, 0, 2, 1, 0)])
    decoding = [Step(n, [], [], [], [], [Span(0, 1 + n, 1, 1, 0), Span(1, n, 1, 1, 0)]) for n in (2, 3)]
    alone = Step(4, [], [], [], [], [Span(1, 4, 1, 1, 0)])
    pending = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (prompts, *decoding, alone):
            worker.launch(step)
            pending.append(worker.sample())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [len(each.wait().tokens) for each in pending] == [2, 2, 2, 1]


@torch.inference_mode()
def test_bfloat16_logits_are_near_those_of_float32(tmp_path: Path) -> None:
    folder = resolve(str(make_tiny("qwen3", tmp_path, head_dim=32)))
    tokens = torch.randint(256, (100,), generator=torch.Generator().manual_seed(0))
    logits = []
    for kernels in (select(torch.bfloat16, find_device("cuda")), TorchKernels(torch.float32)):
        model = load_model(folder, kernels=kernels, dtype=str(kernels.dtype).removeprefix("torch."))
        caches = [kernels.allocate(9, spec) for spec in model.config.caches]
        batch = flat_batch([list(range(1, 8))], [range(100)], kernels.device)
        model.reach(100)
        hidden = model.forward(tokens.to(kernels.device), batch, caches)
        logits.append(model.logits(hidden).cpu())
    ours, theirs = logits
    assert ours.dtype == torch.float32
    assert (ours - theirs).norm() < 0.05 * theirs.norm()
