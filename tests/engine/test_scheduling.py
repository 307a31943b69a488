"""Scheduler, cache and engine together against an oracle, under random admit, step, abort, preempt and fail sequences.

The model's place is taken by `Memory`, which writes into each KV slot what belongs there (the hash of all tokens up to
it) and checks, before it answers, that every slot a request would read holds just that. So a block that leaks into
another request, is evicted too early, or is reused before it was written, is seen at once. The next token is a pure
function of the tokens so far, so each answer is known beforehand, whatever the schedule was.
"""

from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import FinishReason, Generate, Output
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Chunk, Scheduler
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.sampler import Sampled

SIZE = 4
EOS = 0
POISON = 99
"""A token that makes any step fail that computes it."""


def next_token(tokens: Sequence[int]) -> int:
    return hash(tuple(tokens)) % 7


def expected_output(prompt: list[int], params: SamplingParams, max_model_len: int) -> list[int]:
    tokens = list(prompt)
    while True:
        token = next_token(tokens)
        if token == EOS and len(tokens) - len(prompt) < params.min_tokens:
            token = 1
        tokens.append(token)
        made = len(tokens) - len(prompt)
        if (token == EOS and not params.ignore_eos) or made >= params.max_tokens or len(tokens) >= max_model_len:
            return tokens[len(prompt) :]


class Memory:
    """Stands in for the model: KV slots whose contents can be checked."""

    def __init__(self, blocks: int) -> None:
        self.slots: list[int | None] = [None] * (blocks * SIZE)
        self.largest_batch = 0
        self.fail_next = False

    def run(self, plan: Sequence[Chunk]) -> list[Sampled | None]:
        self.largest_batch = max(self.largest_batch, sum(chunk.count for chunk in plan))
        for request, start, count in plan:
            contents = contents_of(request)
            for position in range(start, start + count):
                self.slots[slot_of(request, position)] = contents[position]
        if self.fail_next or any(POISON in r.tokens[start : start + count] for r, start, count in plan):
            self.fail_next = False
            for request, start, count in plan:  # a failed step leaves rubbish behind
                for position in range(start, start + count):
                    self.slots[slot_of(request, position)] = None
            raise RuntimeError("boom")
        return [self._answer(chunk) for chunk in plan]

    def _answer(self, chunk: Chunk) -> Sampled | None:
        request, start, count = chunk
        found = [self.slots[slot_of(request, position)] for position in range(start + count)]
        assert found == contents_of(request)[: start + count], "a wrong KV block"
        if not chunk.samples:
            return None
        token = next_token(request.tokens)
        if token == EOS and len(request.output) < request.params.min_tokens:
            token = 1
        return Sampled(token, None)


def slot_of(request: Request, position: int) -> int:
    assert request.lease is not None
    return request.lease.table[position // SIZE] * SIZE + position % SIZE


def contents_of(request: Request) -> list[int]:
    """What belongs into the slot of each token: a hash of all tokens up to it."""
    return list(accumulate(request.tokens, lambda before, token: hash((before, token)), initial=hash(request.salt)))[1:]


def make_engine(
    blocks: int = 16, *, max_num_seqs: int = 4, max_batched_tokens: int = 8, max_model_len: int = 40, reuse: bool = True
) -> tuple[Engine, Memory]:
    memory = Memory(blocks)
    cache = PrefixCache(blocks, SIZE, reuse=reuse)
    scheduler = Scheduler(cache, max_num_seqs=max_num_seqs, max_batched_tokens=max_batched_tokens)
    return Engine(scheduler, memory, max_model_len=max_model_len), memory


def generate(request_id: str, prompt: list[int], *, priority: int = 0, salt: str = "", **params: object) -> Generate:
    params = {"max_tokens": 5, "eos_token_ids": (EOS,)} | params
    return Generate(
        id=request_id,
        prompt=prompt,
        params=SamplingParams(**params),
        priority=priority,
        cache_salt=salt,  # type: ignore[arg-type]
    )


def drain(engine: Engine) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            answers.setdefault(output.id, []).extend(output.tokens)
        engine.scheduler.check()
    return answers


class Life(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(10, 20),
        seqs=st.integers(1, 6),
        extra=st.integers(0, 9),
        reuse=st.booleans(),
    )
    def start(self, blocks: int, seqs: int, extra: int, reuse: bool) -> None:
        self.engine, self.memory = make_engine(
            blocks, max_num_seqs=seqs, max_batched_tokens=seqs + extra, max_model_len=40, reuse=reuse
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
    )
    def add(
        self, prompt: list[int], max_tokens: int, min_tokens: int, ignore_eos: bool, priority: int, salt: str
    ) -> None:
        self.count += 1
        message = generate(
            str(self.count),
            prompt,
            priority=priority,
            salt=salt,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            ignore_eos=ignore_eos,
        )
        self.requests[message.id] = message
        self.answers[message.id] = []
        assert self.engine.add(message) is None

    @rule()
    @precondition(lambda self: self.engine.has_work)
    def step(self) -> None:
        for output in self.engine.step():
            self._take(output)

    @rule()
    @precondition(lambda self: self.engine.has_work)
    def fail_a_step(self) -> None:
        self.memory.fail_next = True
        for output in self.engine.step():
            # Only a request that was alone in the step may be blamed.
            assert output.finish_reason is FinishReason.ERROR
            del self.requests[output.id]

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
        assert self.memory.largest_batch <= self.engine.scheduler.max_batched_tokens

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
        self.answers[output.id] += output.tokens
        if output.finish_reason is not None:
            message = self.requests.pop(output.id)
            assert self.answers[output.id] == expected_output(message.prompt, message.params, 40)


Life.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRandomLife = Life.TestCase


def test_preemption_recomputes_and_changes_no_answer() -> None:
    engine, _ = make_engine(blocks=10)
    messages = [generate(str(n), [n + 1] * 7, max_tokens=20, ignore_eos=True) for n in range(4)]
    for message in messages:
        engine.add(message)
    answers = drain(engine)
    assert engine.scheduler.preemptions > 0
    assert answers == {m.id: expected_output(m.prompt, m.params, 40) for m in messages}


def test_the_oldest_is_never_preempted() -> None:
    engine, _ = make_engine(blocks=10)
    for n in range(4):
        engine.add(generate(str(n), [n + 1] * 7, max_tokens=20, ignore_eos=True))
    order = []
    while engine.has_work:
        order += [output.id for output in engine.step() if output.finish_reason]
    assert order[0] == "0"


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
    assert refusal is not None and refusal.finish_reason is FinishReason.ERROR
    assert "40 tokens" in str(refusal.error)
    assert not engine.has_work


def test_one_poisoned_request_fails_alone() -> None:
    engine, _ = make_engine(blocks=32, max_batched_tokens=64)
    for n in range(3):
        engine.add(generate(str(n), [n + 1] * 5, ignore_eos=True))
    engine.add(generate("bad", [1, POISON]))
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
        engine.scheduler.check()
    failed = [output.id for output in outputs if output.error]
    assert failed == ["bad"]
    assert {output.id for output in outputs if output.finish_reason is FinishReason.LENGTH} == {"0", "1", "2"}


def test_a_budget_below_the_number_of_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batched_tokens"):
        make_engine(max_num_seqs=8, max_batched_tokens=7)
