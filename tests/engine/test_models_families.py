"""Tiny random models of every native family give transformers' greedy tokens through the whole engine, with the fastest
kernels of this machine: alone and 32 at once, prefix cache off and on, odd chunks, preempted.
"""

import random

import pytest
import torch

from headwater_engine.core.engine import Engine
from headwater_engine.kernels import select
from headwater_engine.kernels.cpu import CppKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from tests.engine.greedy import Case, greedy_answers, make_engine
from tests.engine.tiny import FAMILIES, make_tiny, reference_greedy

NEW_TOKENS = 24


def engine_of(case: Case, blocks: int, *, reuse: bool, **options: int) -> Engine:
    return make_engine(case.model, case.kernels, blocks, reuse=reuse, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = make_tiny(request.param, tmp_path_factory.mktemp(request.param), **FAMILIES[request.param])
    rng = random.Random(3)
    shared = [rng.randrange(256) for _ in range(40)]
    prompts = [
        [*shared[: rng.choice((0, 17, 40))], *(rng.randrange(256) for _ in range(rng.randint(1, 60)))]
        for _ in range(32)
    ]
    kernels = select(torch.float32)
    assert isinstance(kernels, CppKernels)
    model = load_model(resolve(str(folder)), kernels=kernels)
    expected = reference_greedy(folder, prompts, NEW_TOKENS)
    assert len({token for tokens in expected for token in tokens}) > 50, "a model that repeats itself shows nothing"
    return Case(model, kernels, prompts, expected)


def test_alone(case: Case) -> None:
    engine = engine_of(case, 64, max_num_seqs=1, reuse=False)
    assert greedy_answers(engine, case.prompts, NEW_TOKENS) == case.expected


@pytest.mark.parametrize("reuse", [False, True], ids=["cache off", "cache on"])
def test_thirty_two_at_once(case: Case, reuse: bool) -> None:
    engine = engine_of(case, 400, reuse=reuse)
    for _ in range(2):
        assert greedy_answers(engine, case.prompts, NEW_TOKENS) == case.expected
    assert (engine.stats().prompt_tokens_cached > 0) == reuse


@pytest.mark.parametrize("budget", [33, 37, 61])
def test_prompts_in_odd_chunks(case: Case, budget: int) -> None:
    engine = engine_of(case, 400, max_batched_tokens=budget, reuse=True)
    assert greedy_answers(engine, case.prompts, NEW_TOKENS) == case.expected


def test_preempted_requests(case: Case) -> None:
    engine = engine_of(case, 40, max_batched_tokens=128, reuse=True)
    assert greedy_answers(engine, case.prompts, NEW_TOKENS) == case.expected
    assert engine.stats().preemptions > 0
