"""Scheduler, cache and engine together against an oracle, under random admit, step, abort, preempt and fail sequences.

The model's place is taken by `CheckedWorker`, which says what each answer must be, and sees each wrong block.
"""

import random
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import FinishReason, Generate, Output
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Drafter, Scheduler
from headwater_engine.grammar.matcher import Matcher
from tests.engine.checked_worker import (
    EOS,
    POISON,
    SIZE,
    CheckedWorker,
    Place,
    StubMatcher,
    expected_output,
    expected_prompt_logprobs,
    generate,
    next_token,
)

MAX_MODEL_LEN = 40


def make_engine(
    blocks: int = 16,
    *,
    max_num_seqs: int = 4,
    max_batched_tokens: int = 8,
    max_model_len: int = 40,
    reuse: bool = True,
    depth: int = 0,
    poisoned: Place = Place.LAUNCH,
    drafter: Drafter | None = None,
    itl_objective: float | None = None,
    jumps: bool = True,
) -> tuple[Engine, CheckedWorker]:
    worker = CheckedWorker(blocks, poisoned)
    scheduler = Scheduler(
        PrefixCache(blocks, SIZE, reuse=reuse),
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        itl_objective=itl_objective,
        drafter=drafter,
    )
    return Engine(scheduler, worker, max_model_len=max_model_len, vocab_size=100, depth=depth, jumps=jumps), worker


def add_with_form(engine: Engine, message: Generate, *, tardy: bool = False) -> None:
    """As if its grammar had been made a moment ago."""
    engine._queue(message, cast("Matcher", StubMatcher(message, tardy=tardy)))


def drain(engine: Engine) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            answers.setdefault(output.id, []).extend(output.tokens)
        engine.scheduler.check()
    return answers


def stub_drafter(rng: random.Random) -> Drafter:
    """Guesses of any length, the first few of which are right."""

    def draft(request: Request, most: int) -> list[int]:
        tokens = list(request.tokens)
        for _ in range(rng.randint(0, min(most, 2 * SIZE))):
            tokens.append(next_token(tokens) if rng.random() < 0.8 else rng.randrange(7))
        return tokens[len(request.tokens) :]

    return draft


class Life(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(10, 20),
        seqs=st.integers(1, 6),
        extra=st.integers(0, 9),
        reuse=st.booleans(),
        depth=st.sampled_from([0, 1]),
        drafts=st.sampled_from([None, 0, 1]),
        poisoned=st.sampled_from(Place),
    )
    def start(
        self, blocks: int, seqs: int, extra: int, reuse: bool, depth: int, drafts: int | None, poisoned: Place
    ) -> None:
        self.engine, self.worker = make_engine(
            blocks,
            max_num_seqs=seqs,
            max_batched_tokens=seqs + extra,
            max_model_len=MAX_MODEL_LEN,
            reuse=reuse,
            depth=depth,
            poisoned=poisoned,
            drafter=None if drafts is None else stub_drafter(random.Random(drafts)),
        )
        self.requests: dict[str, Generate] = {}
        self.answers: dict[str, list[int]] = {}
        self.count = 0

    @rule(
        # Few tokens and short steps: prefixes must collide often.
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=30),
        max_tokens=st.integers(1, 12),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "tenant"]),
        prompt_logprobs=st.sampled_from([None, None, 1]),
        poison=st.sampled_from([False, False, False, False, True]),
        form=st.booleans(),
    )
    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        min_tokens: int,
        ignore_eos: bool,
        priority: int,
        salt: str,
        prompt_logprobs: int | None,
        poison: bool,
        form: bool,
    ) -> None:
        self.count += 1
        message = generate(
            str(self.count),
            [*prompt, POISON] if poison else prompt,
            priority=priority,
            salt=salt,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            ignore_eos=ignore_eos,
            prompt_logprobs=prompt_logprobs,
        )
        self.requests[message.id] = message
        self.answers[message.id] = []
        if form:
            add_with_form(self.engine, message, tardy=len(prompt) % 2 == 0)
        else:
            assert self.engine.add(message) is None

    @rule()
    @precondition(lambda self: self.engine.has_work)
    def step(self) -> None:
        for output in self.engine.step():
            self._take(output)

    @rule(place=st.sampled_from(Place))
    @precondition(lambda self: self.engine.has_work)
    def fail_a_step(self, place: Place) -> None:
        self.worker.fail_next = place
        self.step()

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.engine.abort([request_id, "unknown"])
        del self.requests[request_id]

    @invariant()
    def everything_adds_up(self) -> None:
        self.engine.scheduler.check()
        assert {r.id for r in self.engine.scheduler.requests()} == self.requests.keys()
        assert self.worker.largest_batch <= self.engine.scheduler.max_batched_tokens
        seats = {request.seat for request in self.engine.scheduler.running}
        assert self.worker.rows.keys() - seats <= set(self.engine.scheduler._left), "a worker was not told who left"

    def teardown(self) -> None:
        steps = 0
        while self.engine.has_work:
            self.step()
            self.everything_adds_up()
            steps += 1
            assert steps < 10_000, "the engine does not come to an end"
        cache = self.engine.scheduler.cache
        assert cache.available == cache.total, "free and cached blocks are all there are when nothing runs"

    def _take(self, output: Output) -> None:
        message = self.requests[output.id]
        answer = self.answers[output.id]
        if output.error is not None:
            assert self.worker.last_failed is not None
            assert len(self.worker.last_failed.spans) == 1, "only who was alone in the step may be blamed"
            del self.requests[output.id]
            return
        assert POISON not in message.prompt
        if not answer and message.params.prompt_logprobs is not None:
            assert output.prompt_logprobs == expected_prompt_logprobs(message)
        answer += output.tokens
        if output.finish_reason is not None:
            del self.requests[output.id]
            assert answer == expected_output(message.prompt, message.params, MAX_MODEL_LEN)


Life.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRandomLife = Life.TestCase


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("drafts", [False, True])
def test_preemption_recomputes_and_changes_no_answer(depth: int, drafts: bool) -> None:
    drafter = stub_drafter(random.Random(1)) if drafts else None
    engine, _ = make_engine(blocks=10, depth=depth, drafter=drafter)
    messages = [generate(str(n), [n + 1] * 7, max_tokens=20, ignore_eos=True) for n in range(4)]
    for message in messages:
        engine.add(message)
    answers = drain(engine)
    assert engine.scheduler.preemptions > 0
    assert answers == {m.id: expected_output(m.prompt, m.params, 40) for m in messages}


@pytest.mark.parametrize("depth", [0, 1])
def test_the_oldest_is_never_preempted(depth: int) -> None:
    engine, _ = make_engine(blocks=10, depth=depth)
    for n in range(4):
        engine.add(generate(str(n), [n + 1] * 7, max_tokens=20, ignore_eos=True))
    order = []
    while engine.has_work:
        order += [output.id for output in engine.step() if output.finish_reason]
    assert order[0] == "0"


def test_the_next_step_is_launched_before_the_one_before_it_is_waited_for() -> None:
    """So that a device has work while the host takes in what the last step gave."""
    engine, worker = make_engine(depth=1)
    engine.add(generate("a", [1], max_tokens=4, ignore_eos=True))
    assert engine.step() == []
    for _ in range(3):
        launched = worker.steps
        assert [output.id for output in engine.step()] == ["a"]
        assert worker.steps == launched + 1
    # The fourth token is sure to be the last one, so nothing is launched behind it.
    launched = worker.steps
    assert [output.finish_reason for output in engine.step()] == [FinishReason.LENGTH]
    assert worker.steps == launched
    assert not engine.has_work


def test_an_end_that_nobody_could_foresee_costs_one_row_that_is_dropped() -> None:
    engine, worker = make_engine(depth=1)
    message = generate("a", [1, 2], max_tokens=30)
    expected = expected_output(message.prompt, message.params, MAX_MODEL_LEN)
    assert expected[-1] == EOS
    engine.add(message)
    assert drain(engine) == {"a": expected}
    assert worker.computed == len(message.prompt) + len(expected)


def test_with_a_drafter_a_step_waits_for_what_became_of_the_last_drafts() -> None:
    engine, _ = make_engine(
        blocks=32, depth=1, max_batched_tokens=20, drafter=lambda request, most: [EOS] * min(most, 1)
    )
    for n in range(3):
        engine.add(generate(str(n), [n + 1], max_tokens=8, ignore_eos=True))
    sizes = [len(outputs) for _ in range(8) if (outputs := engine.step())]
    assert sizes and set(sizes) == {3}


@pytest.mark.parametrize("depth", [0, 1])
def test_what_a_form_leaves_no_choice_of_is_computed_at_once(depth: int) -> None:
    """And not drawn. So there are fewer steps for the same answers, and no position is computed twice."""
    steps = {}
    for jumps in (False, True):
        engine, worker = make_engine(40, max_batched_tokens=32, depth=depth, jumps=jumps)
        messages = [generate(str(n), [n + 1] * 3, max_tokens=24, ignore_eos=True) for n in range(4)]
        for message in messages:
            add_with_form(engine, message)
        assert drain(engine) == {m.id: expected_output(m.prompt, m.params, 40) for m in messages}
        assert worker.computed <= 4 * (3 + 23)
        steps[jumps] = worker.steps
    assert steps[True] < 0.7 * steps[False]


def test_what_is_forced_leaves_half_of_a_step_to_prompts() -> None:
    engine, worker = make_engine(60, max_num_seqs=5, max_batched_tokens=15)
    for n in range(4):
        add_with_form(engine, generate(str(n), [n + 1], max_tokens=30, ignore_eos=True))
    while len(engine.step()) < 4:
        pass
    engine.add(generate("prompt", [9] * 38, max_tokens=1))
    before = engine.stats().prompt_tokens_computed
    engine.step()
    assert engine.stats().prompt_tokens_computed - before >= 5
    assert worker.largest_batch <= 15


def test_log_probabilities_are_of_tokens_that_were_drawn() -> None:
    engine, worker = make_engine(40)
    message = generate("a", [1], max_tokens=24, ignore_eos=True, logprobs=0)
    add_with_form(engine, message)
    assert drain(engine) == {"a": expected_output(message.prompt, message.params, 40)}
    assert worker.steps == 24


def test_a_long_prompt_does_not_hold_up_those_that_decode() -> None:
    engine, _ = make_engine(max_batched_tokens=8)
    engine.add(generate("short", [1], max_tokens=10, ignore_eos=True))
    engine.step()
    engine.add(generate("long", [2] * 30))
    for _ in range(4):
        assert "short" in {output.id for output in engine.step()}


def test_a_burst_with_a_common_prefix_computes_it_once() -> None:
    engine, _ = make_engine(blocks=32, max_batched_tokens=64)
    prefix = [1, 2] * 8
    for n in range(4):
        engine.add(generate(str(n), [*prefix, n + 3]))
    outputs = engine.step()
    assert [output.cached_tokens for output in outputs] == [0, 16, 16, 16]
    assert engine.stats().prompt_tokens_computed == 17 + 3


def test_generated_tokens_are_reused_by_the_next_turn() -> None:
    engine, _ = make_engine(blocks=32)
    engine.add(generate("1", [1] * 4, max_tokens=9, ignore_eos=True))
    answer = drain(engine)["1"]
    engine.add(generate("2", [1] * 4 + answer + [5], max_tokens=1))
    while not (outputs := engine.step()):
        pass
    assert outputs[0].cached_tokens == 12


def test_a_lower_priority_number_runs_first() -> None:
    engine, _ = make_engine(max_num_seqs=1)
    for request_id, priority in (("a", 1), ("b", 0), ("c", 0)):
        engine.add(generate(request_id, [1], priority=priority, max_tokens=1))
    order = []
    while engine.has_work:
        order += [output.id for output in engine.step()]
    assert order == ["b", "c", "a"]


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    engine, _ = make_engine(max_model_len=40)
    refusal = engine.add(generate("1", [1] * 40))
    assert refusal is not None and refusal.refusal is not None
    assert refusal.refusal.code == "context_length_exceeded"
    assert "40 tokens" in refusal.refusal.message
    assert not engine.has_work


def test_a_budget_below_the_number_of_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batched_tokens"):
        make_engine(max_num_seqs=8, max_batched_tokens=7)
