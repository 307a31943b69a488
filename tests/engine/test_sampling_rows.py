"""Rows of the sampler: what they count is what a look at all tokens would find, and they look at each token once."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor

from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.kernels.interface import AttentionBatch, LayerCache, SamplingBatch
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.config import ModelConfig
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.worker.worker import ModelWorker

VOCABULARY = 12
CPU = torch.device("cpu")


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, **changes})


@dataclass(slots=True)
class Answer:
    params: SamplingParams
    prompt: list[int]
    output: list[int] = field(default_factory=list)

    def counts(self) -> list[int]:
        times = Counter(self.output)
        return [2 * times[token] + (token in self.prompt) for token in range(VOCABULARY)]


some_params = st.builds(
    params,
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    seed=st.integers(-(2**63), 2**63 - 1),
    min_tokens=st.integers(0, 4),
    eos_token_ids=st.sampled_from([(), (3,), (3, 99)]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-1.5, 2.0]), max_size=3),
)
some_params = st.builds(
    replace, some_params, allowed_token_ids=st.none() | st.sets(st.integers(0, VOCABULARY - 1), min_size=1).map(tuple)
)
some_tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)


@given(st.data())
def test_rows_are_those_of_their_requests_whatever_came_and_went(data: st.DataObject) -> None:
    rows, running = SamplingRows(VOCABULARY, CPU), dict[int, Answer]()
    for _ in range(data.draw(st.integers(1, 25))):
        seat = data.draw(st.integers(0, 20))
        if seat not in running:
            running[seat] = Answer(data.draw(some_params), data.draw(some_tokens), data.draw(some_tokens))
            rows.seat(seat, running[seat].params, running[seat].prompt, running[seat].output)
        elif data.draw(st.integers(0, 4)) == 0:
            rows.leave(seat)
            del running[seat]
        else:
            change(rows, running, data)
        assert_as_running(rows, running)


def change(rows: SamplingRows, running: dict[int, Answer], data: st.DataObject) -> None:
    """Several rows at once, some of them several times."""
    seats = data.draw(st.lists(st.sampled_from(sorted(running)), max_size=6))
    if data.draw(st.booleans()):
        tokens = [data.draw(st.integers(0, VOCABULARY - 1)) for _ in seats]
        for seat, token in zip(seats, tokens, strict=True):
            running[seat].output.append(token)
        rows.append(seats, torch.tensor(tokens, dtype=torch.long) if data.draw(st.booleans()) else tokens)
    else:
        seats = [seat for n, seat in enumerate(seats) if seats[: n + 1].count(seat) <= len(running[seat].output)]
        rows.retract(seats, [running[seat].output.pop() for seat in seats])


def assert_as_running(rows: SamplingRows, running: dict[int, Answer]) -> None:
    seats = list(running)[::-1]
    batch = rows.batch(seats)
    fresh = SamplingRows(VOCABULARY, CPU)
    for seat in seats:
        fresh.seat(seat, running[seat].params, running[seat].prompt, running[seat].output)
    expected = fresh.batch(seats)
    for name in ("inverse_temperatures", "keys", "top_k", "top_p", "min_weight"):
        assert torch.equal(getattr(batch, name), getattr(expected, name))
    assert masks_of(batch) == masks_of(expected)
    assert (batch.biases is None) == (expected.biases is None)
    if batch.biases is not None and expected.biases is not None:
        assert torch.equal(batch.biases.places, expected.biases.places)
        assert torch.equal(batch.biases.values, expected.biases.values)
    for n, seat in enumerate(seats):
        asked = running[seat].params
        counted = asked.repetition_penalty != 1 or asked.presence_penalty or asked.frequency_penalty
        allowed = asked.allowed_token_ids
        assert masks_of(batch)[n] == (None if allowed is None else sorted(allowed))
        assert rows.outputs(seat) == len(running[seat].output)
        if batch.penalties is None or batch.penalties.rows[n] < 0:
            assert not counted
        else:
            assert batch.penalties.counts[batch.penalties.rows[n]].tolist() == running[seat].counts()


def masks_of(batch: SamplingBatch) -> list[list[int] | None]:
    """The tokens that each row may become; None: all."""
    if batch.masks is None:
        return [None] * len(batch.top_k)
    lines = [None if row < 0 else batch.masks.bits[row].tolist() for row in batch.masks.rows.tolist()]
    return [
        None if words is None else [token for token in range(32 * len(words)) if words[token // 32] >> token % 32 & 1]
        for words in lines
    ]


def test_a_batch_has_nothing_of_what_no_row_asks_for() -> None:
    rows = SamplingRows(VOCABULARY, CPU)
    rows.seat(0, params(), [1])
    rows.seat(1, params(temperature=0, top_k=3), [1])
    batch = rows.batch([0, 1])
    assert (batch.filters, batch.changes) == (False, False)
    rows.seat(2, params(top_p=0.5, presence_penalty=1, logit_bias={2: 1.0}, allowed_token_ids=(2, 3)), [1])
    batch = rows.batch([2, 0])
    assert batch.filters
    assert batch.penalties is not None
    assert batch.penalties.rows.tolist() == [0, -1]
    assert masks_of(batch) == [[2, 3], None]
    assert batch.biases is not None


def test_lines_of_counts_are_used_again() -> None:
    rows = SamplingRows(VOCABULARY, CPU)
    for seat in range(100):
        rows.seat(seat % 3, params(presence_penalty=1), [seat % VOCABULARY])
        rows.leave(seat % 3)
    rows.seat(5, params(presence_penalty=1), [2])
    penalties = rows.batch([5]).penalties
    assert penalties is not None
    assert len(penalties.counts) == 1


@pytest.mark.parametrize(
    ("changes", "prompt", "output"),
    [
        ({"presence_penalty": 1.0}, [0, VOCABULARY], []),
        ({"repetition_penalty": 1.1}, [0], [-1]),
        ({"logit_bias": {VOCABULARY: 1.0}}, [0], []),
        ({"allowed_token_ids": (1, VOCABULARY)}, [0], []),
    ],
)
def test_a_token_that_is_not_in_the_vocabulary_is_refused_and_the_row_stays_free(
    changes: dict[str, Any], prompt: list[int], output: list[int]
) -> None:
    rows = SamplingRows(VOCABULARY, CPU)
    with pytest.raises(ValueError, match="not in the model's vocabulary of 12"):
        rows.seat(0, params(**changes), prompt, output)
    rows.seat(0, params(presence_penalty=1.0), [1])
    penalties = rows.batch([0]).penalties
    assert penalties is not None
    assert penalties.counts[penalties.rows[0]].nonzero().tolist() == [[1]]


# In the worker


class Read(list[int]):
    """Tokens that count how often one of them is looked at."""

    reads = 0

    def __iter__(self) -> Iterator[int]:
        self.reads += len(self)
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.reads += len(found) if isinstance(index, slice) else 1
        return found


class Constant:
    """A model that always likes the same tokens."""

    config = ModelConfig(VOCABULARY, (), 999_999)
    recordable = False

    def reach(self, positions: int) -> None:
        pass

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        return torch.zeros(len(tokens) if rows is None else len(rows), 1)

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.linspace(0, 1, VOCABULARY).repeat(len(hidden), 1)


class Run:
    """A worker, and what its seats have said."""

    def __init__(self) -> None:
        self._worker = ModelWorker(Constant(), [], TorchKernels(), seats=4, longest=9000, budget=8)
        self._lengths: dict[int, int] = {}
        self._said: list[Seat] = []
        self._left: list[int] = []

    def seat(self, index: int, prompt: list[int], output: Sequence[int] = (), **asked: Any) -> None:
        self._said.append(Seat(index, prompt if not output else [*prompt, *output], len(output), params(**asked)))
        self._lengths[index] = len(prompt) + len(output)

    def leave(self, index: int) -> None:
        self._left.append(index)

    def step(self, *seats: int) -> list[int]:
        """The next token of each."""
        spans = [Span(seat, self._lengths[seat] - 1, 1, sampled=1, scored=0) for seat in seats]
        self._worker.launch(Step(0, left=self._left, seated=self._said, blocks=[], drafts=[], spans=spans))
        self._left, self._said = [], []
        tokens = [token for (token,) in self._worker.sample().wait().tokens]
        for seat in seats:
            self._lengths[seat] += 1
        return tokens


def test_a_token_costs_the_same_at_the_end_of_a_long_context() -> None:
    """Counted in tokens that are looked at: none a step, where a look at all of them was what penalties took."""
    run, prompt = Run(), Read(n % VOCABULARY for n in range(8000))
    run.seat(0, prompt, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.1, max_tokens=99)
    run.step(0)
    before = prompt.reads
    for _ in range(20):
        run.step(0)
    assert prompt.reads == before


def test_rows_follow_requests_that_come_go_and_come_back() -> None:
    """A preempted request gives its row to another; its answer is the one that it gets when it is left alone."""

    def answers(preempted: bool) -> list[int]:
        run = Run()
        asked = {"presence_penalty": 2.0, "frequency_penalty": 0.7, "seed": 5}
        run.seat(0, [1, 2], **asked)
        run.seat(1, [3], seed=9, frequency_penalty=-1.0)
        found = [run.step(0, 1)[0] for _ in range(4)]
        if preempted:
            run.leave(0)
            run.seat(0, [7], presence_penalty=1.0)
            for _ in range(3):
                run.step(1, 0)
            run.leave(0)
            run.seat(0, [1, 2], found, **asked)
        return found + [run.step(1, 0)[1] for _ in range(6)]

    assert answers(preempted=True) == answers(preempted=False)


def test_an_answer_with_penalties_comes_to_all_tokens_before_it_repeats_one() -> None:
    run = Run()
    run.seat(0, [0], temperature=0, presence_penalty=2.0)
    assert [run.step(0)[0] for _ in range(VOCABULARY)] == list(range(VOCABULARY))[::-1]


def test_a_seat_that_nobody_got_to_sit_on_can_be_given_back() -> None:
    run = Run()
    run.leave(3)
    run.seat(0, [0], temperature=0)
    assert run.step(0) == [VOCABULARY - 1]


def test_only_allowed_tokens_come_and_their_biases_and_the_least_length_hold() -> None:
    rows = SamplingRows(VOCABULARY, CPU)
    biased = {"logit_bias": {0: 50.0, 2: 1.5}, "min_tokens": 1, "eos_token_ids": (4,)}
    rows.seat(0, params(allowed_token_ids=(1, 2, 4), **biased), [])
    first: list[float] = []
    later: list[float] = []
    for found in (first, later):
        logits = torch.zeros(1, VOCABULARY)
        TorchKernels().sample(logits, rows.batch([0]))
        found.extend(logits[0].tolist())
        rows.append([0], [1])
    assert [token for token, logit in enumerate(first) if logit > -math.inf] == [1, 2]
    assert [token for token, logit in enumerate(later) if logit > -math.inf] == [1, 2, 4]
    assert (later[1], later[2], later[4]) == (0, 1.5, 0)
