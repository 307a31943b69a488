"""A worker gives the same answers whatever is in its steps: two of them under way, drafts, prompts that are scored.

And its rows are those that the steps spell, whoever sat there before.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate, TokenLogprobs
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Drafter
from headwater_engine.kernels.interface import BLOCK_SIZE
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.sampling.params import SamplingParams
from tests.engine.greedy import Case, greedy_answers, make_engine
from tests.engine.tiny import flat_batch, make_tiny, reference_greedy

NEW_TOKENS = 24


def engine_of(case: Case, blocks: int = 80, budget: int = 37, depth: int = 0, drafter: Drafter | None = None) -> Engine:
    options = {"max_num_seqs": 8, "max_batched_tokens": budget, "reuse": True}
    return make_engine(case.model, case.kernels, blocks, **options, depth=depth, drafter=drafter)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder: Path = make_tiny("qwen2", tmp_path_factory.mktemp("model"))
    rng = random.Random(3)
    prompts = [[rng.randrange(256) for _ in range(rng.choice((1, 2, 40, 60)))] for _ in range(12)]
    kernels = TorchKernels(torch.float32)
    model = load_model(resolve(str(folder)), kernels=kernels)
    return Case(model, kernels, prompts, reference_greedy(folder, prompts, NEW_TOKENS))


def test_with_a_step_under_way_answers_are_the_same(case: Case) -> None:
    engine = engine_of(case, depth=1)
    assert greedy_answers(engine, case.prompts, NEW_TOKENS) == case.expected


def test_preempted_with_a_step_under_way(case: Case) -> None:
    engine = engine_of(case, blocks=14, depth=1)
    assert greedy_answers(engine, case.prompts, NEW_TOKENS) == case.expected
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("depth", [0, 1])
def test_drafts_change_no_answer_and_save_steps(case: Case, depth: int) -> None:
    """Of any length, the first few of which are right."""
    rng = random.Random(7)
    answers = {tuple(prompt): answer for prompt, answer in zip(case.prompts, case.expected, strict=True)}

    def draft(request: Request, most: int) -> list[int]:
        right = answers[tuple(request.prompt)][len(request.output) :][: rng.randint(0, most)]
        wrong = rng.randint(0, most - len(right))
        return [*right, *(rng.randrange(256) for _ in range(wrong))]

    engine, plain = engine_of(case, budget=60, depth=depth, drafter=draft), engine_of(case, budget=60, depth=depth)
    assert greedy_answers(engine, case.prompts, NEW_TOKENS) == case.expected
    greedy_answers(plain, case.prompts, NEW_TOKENS)
    assert engine.stats().steps < plain.stats().steps


def test_a_seeds_answer_is_the_same_with_drafts(case: Case) -> None:
    params = SamplingParams(
        max_tokens=20, temperature=1.0, seed=5, frequency_penalty=0.7, repetition_penalty=1.2, logprobs=2
    )
    message = Generate(id="a", prompt=case.prompts[0], params=params)
    (plain,) = run(engine_of(case), [message]).values()

    def draft(request: Request, most: int) -> list[int]:
        return plain.tokens[len(request.output) :][: min(most, 3)]

    engine = engine_of(case, drafter=draft)
    (drafted,) = run(engine, [message]).values()
    assert drafted.tokens == plain.tokens
    assert [each.token for each in drafted.logprobs] == plain.tokens
    assert engine.stats().steps < 20


@pytest.mark.parametrize(("budget", "depth"), [(64, 0), (9, 0), (9, 1)])
def test_scored_prompts_in_any_chunks_beside_others(case: Case, budget: int, depth: int) -> None:
    def message(n: int, k: int | None) -> Generate:
        params = SamplingParams(max_tokens=6, temperature=0, prompt_logprobs=k)
        return Generate(id=str(n), prompt=case.prompts[n], params=params)

    messages = [message(n, 2 if n % 2 else None) for n in range(6)]
    answers = run(engine_of(case, budget=budget, depth=depth), messages)
    for n, answer in enumerate(answers.values()):
        assert answer.tokens == case.expected[n][:6]
        if n % 2 == 0:
            assert answer.prompt_logprobs is None
            continue
        assert answer.prompt_logprobs is not None
        first, *scores = answer.prompt_logprobs
        assert first is None
        assert [score.token for score in scores if score] == case.prompts[n][1:]
        for score, logprob in zip(scores, logprobs_of(case, case.prompts[n]), strict=True):
            assert score is not None and score.logprob == pytest.approx(logprob, abs=1e-4)


@dataclass(slots=True)
class Answer:
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs | None] | None = None


def run(engine: Engine, messages: list[Generate]) -> dict[str, Answer]:
    answers = {message.id: Answer([], []) for message in messages}
    for message in messages:
        assert engine.add(message) is None
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            answer = answers[output.id]
            answer.tokens += output.tokens
            answer.logprobs += output.logprobs or []
            answer.prompt_logprobs = output.prompt_logprobs or answer.prompt_logprobs
    return answers


@torch.inference_mode()
def logprobs_of(case: Case, prompt: list[int]) -> list[float]:
    """Of each token but the first, by one pass over the whole prompt."""
    blocks = -(-len(prompt) // BLOCK_SIZE)
    caches = [case.kernels.allocate(blocks, spec) for spec in case.model.config.caches]
    batch = flat_batch([list(range(blocks))], [range(len(prompt))], torch.device("cpu"))
    logits = case.model.logits(case.model.forward(torch.tensor(prompt), batch, caches))
    return logits.log_softmax(-1)[torch.arange(len(prompt) - 1), prompt[1:]].tolist()
