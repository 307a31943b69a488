"""Steps that are launched on top of one another and replayed from recordings give the answers of steps one by one.

Requests come, are aborted while their tokens are on the way, are preempted for want of blocks or for more urgent ones,
and end while the next step is under way; who comes after them sits on their seats. The stand-in for a CUDA graph
(recording.py) does what was recorded and nothing else; copies home are read at the last moment. On a GPU
(`make gpu-test`) they are real graphs.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from llguidance import LLParserLimits
from torch import Tensor
from torch.overrides import TorchFunctionMode

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import FinishReason, Generate, Tokenizer
from headwater_engine.core.step import Seat, Span, Step, Worker
from headwater_engine.grammar import compiler
from headwater_engine.grammar.matcher import Matcher
from headwater_engine.kernels.interface import AttentionBatch, FlatBatch, LayerCache, SamplingBatch, SeatTables, Told
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.config import ModelConfig
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS, byte_level_tokenizer
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.graphs import ladder
from headwater_engine.worker.worker import ModelWorker
from tests.engine.devices import on_gpu_else, recorder
from tests.engine.greedy import make_engine, make_worker
from tests.engine.recording import RecordableKernels
from tests.engine.tiny import VOCAB_SIZE, make_tiny

BLOCKS, SEATS, BUDGET = 9, 5, 12
ASKED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 0.8, "top_p": 0.7, "top_k": 20, "seed": 6},
    {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"temperature": 0, "logprobs": 2},
    {"temperature": 0.5, "logit_bias": {3: 2.0}, "seed": 7},
]
"""The first three are recorded to the end, the others up to the hidden states."""
FORMS: dict[int, Constraint] = {
    len(ASKED): Constraint(Kind.REGEX, "(ab|cd)*"),
    len(ASKED) + 1: Constraint(Kind.JSON_SCHEMA, '{"type":"array","items":{"enum":[1,20,"x"]}}'),
    len(ASKED) + 2: Constraint(Kind.REGEX, "([ab]long|[cd] and longer than a step is)*"),
    len(ASKED) + 3: Constraint(Kind.REGEX, "(a[ab]lo|b[ab])*"),
    len(ASKED) + 4: Constraint(Kind.REGEX, "([ab]lon)*"),
}
"""For those that ask like the first five, and for a form. Tokens that it leaves no choice of are not drawn, but where
their log-probabilities are asked for."""
ASKED += ASKED[: len(FORMS)]
TOKENIZER = Tokenizer(byte_level_tokenizer(VOCAB_SIZE).backend_tokenizer.to_str(), (BYTE_LEVEL_EOS,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = make_tiny("qwen2", tmp_path_factory.mktemp("model"), num_hidden_layers=1, hidden_size=32)
    return load_model(resolve(str(folder)), kernels=on_gpu_else(RecordableKernels()))


def engine_of(
    model: Model,
    *,
    blocks: int = BLOCKS,
    depth: int = 1,
    worker: Worker | None = None,
    jumps: bool = True,
    checks: bool = False,
) -> Engine:
    options = {"max_num_seqs": SEATS, "max_batched_tokens": BUDGET, "reuse": True, "jumps": jumps, "checks": checks}
    engine = make_engine(model, on_gpu_else(RecordableKernels()), blocks, **options, depth=depth, worker=worker)
    engine.know(TOKENIZER)
    return engine


def recorded(model: Model) -> ModelWorker:
    worker = make_worker(model, on_gpu_else(RecordableKernels()), BLOCKS, SEATS, budget=BUDGET)
    worker.record(recorder(), ladder(SEATS), spare_block=BLOCKS, tell=lambda fraction: None)
    return worker


class LateMasks:
    """Makes masks when it is told to, instead of threads that make them soon."""

    def __init__(self) -> None:
        self.asked: list[Matcher] = []

    def make(self, matchers: Sequence[Matcher]) -> None:
        for matcher in matchers:
            matcher.ask()
        self.asked += matchers

    make_now = make

    def wait(self, matchers: Sequence[Matcher]) -> None:
        pass

    def work(self, is_made: Callable[[], bool]) -> None:
        for matcher in [matcher for matcher in self.asked if is_made()]:
            self.asked.remove(matcher)
            matcher.make()

    def close(self) -> None:
        pass


Answers = dict[tuple[int, int, int], list[int]]


class Overlapped(RuleBasedStateMachine):
    """Requests to an engine with all that it has, and what they would be answered alone."""

    model: Model
    worker: Worker
    alone: Answers
    checks = False
    """Whether tokens are drawn before masks are made. Then steps are not launched on top of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = engine_of(self.model, worker=self.worker, depth=int(not self.checks), checks=self.checks)
        self.asked: dict[str, tuple[int, int, int]] = {}
        self.answers: dict[str, list[int]] = {}
        self.ended: dict[str, FinishReason] = {}
        self.masks = LateMasks()
        self.engine._grammars._maker = self.masks  # type: ignore[assignment]

    @initialize(seed=st.integers(0, 2**32), share=st.sampled_from([1.0, 0.6]))
    def begin(self, seed: int, share: float) -> None:
        """Of the masks that are asked for, so many are made before each step."""
        rng = random.Random(seed)
        self.is_made = lambda: rng.random() < share

    @rule(
        prompt=st.integers(0, 7),
        asked=st.integers(0, len(ASKED) - 1),
        count=st.integers(1, 14),
        priority=st.sampled_from([0, 0, -1, 1]),
    )
    def add(self, prompt: int, asked: int, count: int, priority: int) -> None:
        name = str(len(self.asked))
        self.asked[name] = prompt, asked, count
        self.answers[name] = []
        asking = message(name, prompt, asked, count)
        asking.priority = priority
        assert self.engine.add(asking) is None

    @precondition(lambda self: self.engine.has_work or self.engine.awaits_grammars)
    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.masks.work(self.is_made)
            for output in self.engine.step():
                assert output.error is None, output.error
                assert output.id not in self.ended, "it has ended, and nobody waits for more"
                self.answers[output.id] += output.tokens
                if output.finish_reason is not None:
                    self.ended[output.id] = output.finish_reason
                    assert self.answers[output.id] == self.expected(output.id)

    @precondition(lambda self: self.engine.has_work)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Somebody who runs, most likely with a token under way, and somebody else in its place."""
        running = [request.id for request in self.engine.scheduler.running] or ["nobody"]
        name = data.draw(st.sampled_from(running))
        self.engine.abort([name])
        if name in self.asked:
            self.ended[name] = FinishReason.ABORT
            assert self.answers[name] == self.expected(name)[: len(self.answers[name])]

    @invariant()
    def nothing_is_lost(self) -> None:
        self.engine.scheduler.check()

    def teardown(self) -> None:
        while self.engine.has_work or self.engine.awaits_grammars:
            self.step(1)
        assert self.ended.keys() == self.asked.keys()
        self.engine.close()

    def expected(self, name: str) -> list[int]:
        """By an engine for this request alone, token by token, without recordings."""
        case = self.asked[name]
        if case not in self.alone:
            engine = engine_of(self.model, blocks=40, depth=0, jumps=False)
            self.alone[case] = list(answer_of(engine, message("alone", *case)))
            engine.close()
        return self.alone[case]


def message(name: str, prompt: int, asked: int, count: int) -> Generate:
    """Prompts share beginnings, two by two."""
    rng = random.Random(prompt // 2)
    tokens = [rng.randrange(256) for _ in range(rng.randint(1, 35))]
    tokens += [random.Random(prompt).randrange(256)] * (prompt % 2)
    params = SamplingParams(max_tokens=count, eos_token_ids=(BYTE_LEVEL_EOS,), **ASKED[asked])
    return Generate(id=name, prompt=tokens, params=params, constraint=FORMS.get(asked))


def answer_of(engine: Engine, asked: Generate) -> Iterator[int]:
    engine.add(asked)
    while engine.has_work or engine.awaits_grammars:
        for output in engine.step():
            yield from output.tokens


@pytest.mark.parametrize("checks", [False, True])
def test_answers_are_those_of_steps_one_by_one(model: Model, checks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater_engine.grammar.matcher._PROVEN", 1)  # tokens are looked at from the first on
    Overlapped.model, Overlapped.worker, Overlapped.alone = model, recorded(model), {}
    Overlapped.checks = checks
    run_state_machine_as_test(Overlapped, settings=settings(max_examples=10, stateful_step_count=12, deadline=None))


@pytest.mark.parametrize("records", [False, True])
def test_who_sits_down_gets_nothing_of_a_token_that_was_under_way(model: Model, records: bool) -> None:
    """It was on its way to who sat there before, and was aborted."""
    expected = list(answer_of(engine_of(model, blocks=40, depth=0), message("b", 3, 0, 8)))
    engine = engine_of(model, worker=recorded(model) if records else None)
    engine.add(message("a", 1, 0, 14))
    while not any(output.tokens for output in engine.step()):
        pass
    engine.abort(["a"])
    assert list(answer_of(engine, message("b", 3, 0, 8))) == expected


def test_requests_that_are_preempted_get_their_answers(model: Model) -> None:
    engine = engine_of(model, worker=recorded(model))
    cases = [(prompt, prompt % 3, 30) for prompt in range(7)]
    answers: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        engine.add(message(str(number), *case))
    while engine.has_work:
        for output in engine.step():
            answers.setdefault(output.id, []).extend(output.tokens)
    assert engine.stats().preemptions > 0
    for number, case in enumerate(cases):
        alone = engine_of(model, blocks=40, depth=0)
        assert answers[str(number)] == list(answer_of(alone, message("alone", *case)))


def test_steps_that_decode_are_replayed_and_no_others(model: Model) -> None:
    worker = recorded(model)
    engine = engine_of(model, worker=worker)
    graphs = worker._graphs
    assert graphs is not None
    replayed: list[str] = []
    launch, sample = graphs.launch, graphs.sample
    graphs.launch = lambda size, shared: replayed.append("launch") or launch(size, shared=shared)  # type: ignore
    graphs.sample = lambda size, filters: replayed.append("sample") or sample(size, filters=filters)  # type: ignore
    list(answer_of(engine, message("a", 2, 2, 10)))
    decoding = len(replayed) // 2
    assert replayed == ["launch", "sample"] * decoding
    assert decoding >= 9
    replayed.clear()
    list(answer_of(engine, message("penalties", 2, 3, 10)))
    assert set(replayed) == {"launch"}


def test_a_form_that_cannot_be_kept_any_more_ends_its_answer_and_no_other(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a token, as it looked well before the first one. The limit as it is leaves no such form in reach."""
    monkeypatch.setattr(compiler, "_LIMITS", LLParserLimits(max_items_in_row=2000))
    too_many = "start: A (" + " | ".join(f'"b{n}" start' for n in range(2500)) + ")\nA: /[a-z]{4}/"
    engine = engine_of(model, blocks=40)
    hard = message("hard", 1, 0, 20)
    hard.constraint = Constraint(Kind.GRAMMAR, too_many)
    engine.add(hard)
    engine.add(message("easy", 2, 0, 20))
    said: dict[str, list[int]] = {"hard": [], "easy": []}
    while engine.has_work or engine.awaits_grammars:
        for output in engine.step():
            said[output.id] += output.tokens
            if output.id == "hard" and output.finish_reason is not None:
                assert output.refusal is not None and output.refusal.code == "unsupported_constraint"
    assert 0 < len(said["hard"]) < 20
    assert said["easy"] == list(answer_of(engine_of(model, blocks=40, depth=0), message("alone", 2, 0, 20)))


@pytest.mark.parametrize("depth", [0, 1])
def test_masks_that_are_never_made_hold_up_nobody_else(model: Model, depth: int) -> None:
    """Not one step more than without them; and when they are made, those answers are what they would have been."""
    alone = engine_of(model, blocks=40, depth=depth, jumps=False)
    expected = [list(answer_of(alone, message("alone", 3, asked, 12))) for asked in (0, len(ASKED) - 1)]
    steps = alone.stats().steps
    engine = engine_of(model, blocks=40, depth=depth, jumps=False)
    masks = LateMasks()
    engine._grammars._maker = masks  # type: ignore[assignment]
    answers: dict[str, list[int]] = {"easy": []}
    for number in range(SEATS - 1):
        answers[f"{number}"] = []
        engine.add(message(f"{number}", 3, len(ASKED) - 1, 12))
    while engine.awaits_grammars:
        engine.step()
    engine.add(message("easy", 3, 0, 12))
    before, done = engine.stats().steps, False
    while not done:
        for output in engine.step():
            answers[output.id] += output.tokens
            done = done or output.finish_reason is not None
    assert answers == {"easy": expected[0], **{f"{number}": [] for number in range(SEATS - 1)}}
    assert engine.stats().steps - before <= steps
    computed = engine.stats().steps
    for _ in range(3):
        assert engine.step() == []
    assert engine.stats().steps - computed <= depth, "there is no use in computing what cannot be drawn"
    while engine.has_work:
        masks.work(lambda: True)
        for output in engine.step():
            answers[output.id] += output.tokens
    assert all(answers[f"{number}"] == expected[1] for number in range(SEATS - 1))


def test_a_mask_that_nobody_wants_any_more_is_not_made(model: Model) -> None:
    engine = engine_of(model, blocks=40, depth=0)
    masks = LateMasks()
    engine._grammars._maker = masks  # type: ignore[assignment]
    engine.add(message("a", 3, len(ASKED) - 1, 12))
    while not masks.asked:
        engine.step()
    (matcher,) = masks.asked
    engine.abort(["a"])
    masks.work(lambda: True)
    assert (matcher.seconds, matcher.made) == (0.0, True)


class Counting:
    """A model that counts: what follows token n is n + 1, and what follows `broken` is not a number."""

    config = ModelConfig(20, (), 99)
    recordable = False

    def __init__(self, broken: int) -> None:
        self.broken = broken
        self.outside = 0
        """Tokens that there are not. The first one would have ended a GPU."""

    def reach(self, positions: int) -> None:
        pass

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        self.outside += int((tokens < 0).sum())
        return (tokens if rows is None else tokens[rows]).float().unsqueeze(1)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(len(hidden), 20).scatter_(1, (hidden.long() + 1) % 20, 1.0)
        return torch.where(hidden == self.broken, torch.nan, logits)


@pytest.mark.parametrize("depth", [0, 1])
def test_an_output_that_is_no_number_ends_its_request_and_no_other(depth: int) -> None:
    """The step behind it is under way by then, with a token that there is not."""
    model = Counting(7)
    engine = make_engine(model, TorchKernels(), 40, max_num_seqs=4, max_batched_tokens=16, reuse=True, depth=depth)
    for name, first in (("breaks", 4), ("counts", 10)):
        params = SamplingParams(max_tokens=6, temperature=0)
        engine.add(Generate(id=name, prompt=[first], params=params))
    answers: dict[str, list[int]] = {"breaks": [], "counts": []}
    errors = {}
    while engine.has_work:
        for output in engine.step():
            answers[output.id] += output.tokens
            if output.error is not None:
                errors[output.id] = output.error
    assert errors == {"breaks": "The model's output is not finite."}
    assert answers == {"breaks": [5, 6, 7], "counts": [11, 12, 13, 14, 15, 16]}
    assert model.outside == 0


class NoQuestions(TorchFunctionMode):
    """Raises where a value is asked for, which on a GPU is to wait until all that is queued has run."""

    ASKING = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "nonzero", "to", "tensor")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in self.ASKING, f"{func.__name__} waits for the device"
        return func(*args, **(kwargs or {}))


def test_neither_launch_nor_sample_waits_for_the_device() -> None:
    kernels = Silent()
    worker = ModelWorker(Quiet(), [], kernels, seats=3, longest=40, budget=30)
    params = [
        SamplingParams(max_tokens=9, logprobs=1, prompt_logprobs=1, presence_penalty=1.0),
        SamplingParams(max_tokens=9),
    ]
    seated = [Seat(index, [1, 2, 3], 0, each) for index, each in enumerate(params)]
    first = Step(1, [], seated, [(0, [4]), (1, [5])], [], [Span(0, 0, 3, 1, 2), Span(1, 0, 3, 1, 0)])
    second = Step(2, [], [], [], [], [Span(0, 3, 1, 1, 0), Span(1, 3, 1, 1, 0)])
    third = Step(3, [], [], [], [(1, [1, 1])], [Span(1, 4, 3, 3, 0)])
    for step in (first, second, third):
        with NoQuestions():
            worker.launch(step)
            pending = worker.sample()
        pending.wait()


class Silent(TorchKernels):
    """Looks at no number, as kernels for GPUs do."""

    def spread(self, told: Told, tables: SeatTables, batch: FlatBatch) -> None:
        batch.tokens.copy_(told.tokens)
        batch.rows.copy_(told.rows[0])
        batch.seats.copy_(told.rows[1])

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return logits.argmax(-1)


class Quiet(Counting):
    """Does not look at its tokens either."""

    def __init__(self) -> None:
        super().__init__(broken=99)

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        return (tokens if rows is None else tokens[rows]).float().unsqueeze(1)
