"""A worker gives the same answers whatever is in its steps: two of them under way, drafts, prompts that are scored.

And its rows are those that the steps spell, whoever sat there before.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate, TokenLogprobs
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Drafter
from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.kernels.interface import BLOCK_SIZE
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.inputs import Inputs, lay_out
from headwater_engine.worker.seats import Seats
from tests.engine.greedy import Case, greedy_answers, make_engine
from tests.engine.tiny import make_tiny, reference_greedy

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
    engine = engine_of(case)
    worker = engine._worker
    inputs = lay_out_alone(prompt)
    tokens, batch = inputs.to(torch.device("cpu"))
    logits = case.model.logits(case.model.forward(tokens, batch, worker._caches))  # type: ignore[attr-defined]
    return logits.log_softmax(-1)[torch.arange(len(prompt) - 1), tokens[1:]].tolist()


def lay_out_alone(prompt: list[int]) -> Inputs:
    seats = Seats(1, len(prompt))
    seat = Seat(0, prompt, 0, SamplingParams(max_tokens=1))
    blocks = list(range(-(-len(prompt) // BLOCK_SIZE)))
    seats.take(Step(1, left=[], seated=[seat], blocks=[(0, blocks)], drafts=[], spans=[]))
    return lay_out([Span(0, 0, len(prompt), 1, 0)], seats)


@given(st.data())
def test_inputs_are_what_a_loop_over_spans_says(data: st.DataObject) -> None:
    count, longest = 5, 70
    seats = Seats(count, longest)
    rng = random.Random(data.draw(st.integers(0, 1000)))
    held: dict[int, tuple[list[int], list[int]]] = {}
    for number in range(3):  # who sat there before must not shine through
        seated, blocks = [], []
        for index in rng.sample(range(count), rng.randint(1, count)):
            tokens = [rng.randrange(1000) for _ in range(rng.randint(1, longest))]
            table = [rng.randrange(500) for _ in range(-(-len(tokens) // BLOCK_SIZE))]
            held[index] = tokens, table
            seated.append(Seat(index, tokens, 0, SamplingParams(max_tokens=1)))
            cut = rng.randint(0, len(table))
            blocks += [(index, table[:cut]), (index, table[cut:])]
        seats.take(Step(number, left=[], seated=seated, blocks=blocks, drafts=[], spans=[]))
    spans = []
    for index, (tokens, _) in held.items():
        start = rng.randrange(len(tokens))
        size = rng.randint(1, len(tokens) - start)
        spans.append(Span(index, start, size, rng.randint(0, size), 0))
    inputs = lay_out(spans, seats)
    positions = [span.start + n for span in spans for n in range(span.count)]
    owners = [span.seat for span in spans for _ in range(span.count)]
    assert inputs.positions.tolist() == positions
    assert inputs.tokens.tolist() == [held[owner][0][at] for owner, at in zip(owners, positions, strict=True)]
    assert inputs.slots.tolist() == [
        held[owner][1][at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
        for owner, at in zip(owners, positions, strict=True)
    ]
    assert inputs.context_lengths.tolist() == [span.start + span.count for span in spans]
    ends = np.cumsum([span.count for span in spans]).tolist()
    assert inputs.query_starts.tolist() == [0, *ends]
    assert inputs.sampled.tolist() == [
        row for span, end in zip(spans, ends, strict=True) for row in range(end - span.sampled, end)
    ]
    assert inputs.block_tables.flags.c_contiguous
    for span, table in zip(spans, inputs.block_tables.tolist(), strict=True):
        blocks = held[span.seat][1]
        needed = -(-(span.start + span.count) // BLOCK_SIZE)
        assert table[:needed] == blocks[:needed]
