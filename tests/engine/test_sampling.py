"""The sampler draws from the distribution that a naive reading of the parameters gives, whatever is in the batch."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import Kernels
from headwater_engine.sampling import sampler
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.sampling.sampler import Sampled

VOCABULARY = 24
CPP = CppKernels(torch.float32, Products.FLOAT32)


@dataclass(slots=True)
class Row:
    params: SamplingParams
    prompt: list[int] = field(default_factory=lambda: [1])
    output: list[int] = field(default_factory=list)


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, **changes})


def sample(logits: np.ndarray, rows: Sequence[Row], kernels: Kernels = CPP) -> list[Sampled]:
    seats = SamplingRows(logits.shape[1], kernels.device)
    for n, row in enumerate(rows):
        seats.seat(n, row.params, row.prompt, row.output)
    everybody = range(len(rows))
    drawn = sampler.sample(
        kernels, torch.tensor(logits, dtype=torch.float32), seats.batch(everybody), seats.logprobs(everybody)
    )
    return drawn.results()


# The reference: float64, one row, nothing clever


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def shifted(logits: np.ndarray, row: Row) -> np.ndarray:
    params, changed = row.params, logits.astype(np.float64)
    for token in set(row.prompt) | set(row.output):
        penalty = params.repetition_penalty
        changed[token] = changed[token] / penalty if changed[token] > 0 else changed[token] * penalty
    for token, times in Counter(row.output).items():
        changed[token] -= params.presence_penalty + params.frequency_penalty * times
    for token, bias in params.logit_bias.items():
        changed[token] += bias
    if len(row.output) < params.min_tokens:
        changed[[*params.eos_token_ids, *params.stop_token_ids]] = -np.inf
    return changed


def distribution(logits: np.ndarray, row: Row) -> np.ndarray:
    params = row.params
    scaled = shifted(logits, row) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order[: params.top_k] if params.top_k else order
    shares = softmax(scaled[kept])
    before = np.cumsum(shares) - shares
    kept = kept[(before < params.top_p) | (np.arange(len(kept)) == 0)]
    shares = softmax(scaled[kept])
    kept = kept[shares >= params.min_p * shares.max()]
    result = np.zeros(len(logits))
    result[kept] = softmax(scaled[kept])
    return result


def assert_drawn_from(expected: np.ndarray, drawn: Sequence[int]) -> None:
    """Pearson's chi-square of tokens that were drawn with fixed seeds; `expected`: their probabilities."""
    counts = np.bincount(drawn, minlength=len(expected))
    assert not counts[expected == 0].any(), "a token that is not to be drawn"
    # What comes too seldom for the statistic is one class of its own.
    seldom = expected * len(drawn) < 5
    classes = np.append(expected[~seldom], expected[seldom].sum()) * len(drawn)
    found = np.append(counts[~seldom], counts[seldom].sum())
    found, classes = found[classes > 0], classes[classes > 0]
    freedom = len(classes) - 1
    if freedom == 0:
        return
    statistic = ((found - classes) ** 2 / classes).sum()
    # The 99.9th percentile of the distribution, by Wilson and Hilferty.
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.09 * math.sqrt(spread)) ** 3


# Multiples of 1/8, all different, keep both sides of a comparison away from ties and rounding.
logits_of_a_row = st.permutations([n / 8 for n in range(-VOCABULARY, 2 * VOCABULARY, 3)]).map(
    lambda values: np.array(values[:VOCABULARY])
)
tokens = st.integers(0, VOCABULARY - 1)
some_params = st.builds(
    params,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 2, 5, VOCABULARY, 100]),
    top_p=st.sampled_from([1.0, 0.97, 0.83, 0.41, 0.001]),
    min_p=st.sampled_from([0.0, 0.013, 0.17, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.31, -0.37]),
    repetition_penalty=st.sampled_from([1.0, 1.37, 0.71]),
    logit_bias=st.dictionaries(tokens, st.sampled_from([-100.0, -1.11, 2.03, 100.0]), max_size=3),
    min_tokens=st.sampled_from([0, 2, 5]),
    eos_token_ids=st.sampled_from([(), (3,), (3, 4)]),
    stop_token_ids=st.sampled_from([(), (7,)]),
    logprobs=st.sampled_from([None, 0, 1, 4]),
)
some_rows = st.builds(Row, some_params, st.lists(tokens, min_size=1, max_size=6), st.lists(tokens, max_size=4))


@given(st.lists(st.tuples(logits_of_a_row, some_rows), min_size=1, max_size=5))
def test_each_row_of_a_mixed_batch_gets_the_token_that_the_reference_draws(batch: list[tuple[np.ndarray, Row]]) -> None:
    found = sample(np.stack([logits for logits, _ in batch]), [row for _, row in batch])
    for (logits, row), result in zip(batch, found, strict=True):
        if row.params.temperature == 0:
            assert shifted(logits, row)[result.token] == pytest.approx(shifted(logits, row).max(), abs=1e-5)
            continue
        # Candidates within rounding of a threshold may be in or out: allow what either reading would draw.
        assert distribution(logits, row)[result.token] > 0 or _is_at_a_threshold(logits, row, result.token)


def _is_at_a_threshold(logits: np.ndarray, row: Row, token: int) -> bool:
    looser = {"top_p": min(1.0, row.params.top_p + 1e-5), "min_p": row.params.min_p * (1 - 1e-5)}
    changed = SamplingParams(**{**{f: getattr(row.params, f) for f in row.params.__struct_fields__}, **looser})
    return bool(distribution(logits, Row(changed, row.prompt, row.output))[token] > 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 7, "top_p": 0.9, "min_p": 0.12, "temperature": 1.3},
        {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.25},
        {"logit_bias": {2: 3.0, 5: -100.0}, "top_p": 0.95},
        {"min_tokens": 9, "eos_token_ids": (3,), "stop_token_ids": (4, 7)},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
def test_tokens_come_with_the_probabilities_of_the_reference(changes: dict[str, Any]) -> None:
    logits = np.random.default_rng(7).normal(scale=2.0, size=VOCABULARY)
    rows = [Row(params(seed=seed, **changes), prompt=[1, 2, 2], output=[5, 6, 6, 6]) for seed in range(8000)]
    drawn = [each.token for each in sample(np.tile(logits, (len(rows), 1)), rows)]
    assert_drawn_from(distribution(logits, rows[0]), drawn)


def test_a_seed_draws_anew_at_each_position() -> None:
    logits = np.array([0.0, 0.5, 1.0, 1.5, 2.0, -1.0, 0.2, 0.9])
    for seed in (0, 11, -(2**63), 2**63 - 1):
        rows = [Row(params(seed=seed), output=[0] * position) for position in range(2000)]
        drawn = [each.token for each in sample(np.tile(logits, (len(rows), 1)), rows)]
        assert_drawn_from(softmax(logits), drawn)
        pairs = [8 * first + second for first, second in zip(drawn[::2], drawn[1::2], strict=True)]
        assert_drawn_from(np.outer(softmax(logits), softmax(logits)).ravel(), pairs)


def test_a_large_vocabulary_of_equals_is_drawn_from_evenly() -> None:
    seeds = range(2048)
    drawn = [
        each.token
        for first in range(0, len(seeds), 256)
        for each in sample(np.zeros((256, 49152)), [Row(params(seed=seed)) for seed in seeds[first : first + 256]])
    ]
    assert_drawn_from(np.full(16, 1 / 16), [token * 16 // 49152 for token in drawn])
    assert_drawn_from(np.full(16, 1 / 16), [token % 16 for token in drawn])


@given(st.lists(st.tuples(logits_of_a_row, some_rows), min_size=2, max_size=6))
def test_a_row_gets_the_same_token_and_logprobs_alone_and_in_any_batch(batch: list[tuple[np.ndarray, Row]]) -> None:
    together = sample(np.stack([logits for logits, _ in batch]), [row for _, row in batch])
    alone = [sample(logits[None], [row])[0] for logits, row in batch]
    assert [each.token for each in together] == [each.token for each in alone]
    for one, other in zip(together, alone, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            assert one.logprobs.top == other.logprobs.top
            assert one.logprobs.logprob == other.logprobs.logprob


@pytest.mark.parametrize("size", [8, 1000, 49152])
def test_greedy_takes_the_lowest_index_of_equals(size: int) -> None:
    logits = np.zeros((3, size))
    logits[1, [size - 1, 5]] = 2.0
    logits[2, [3, 4]] = 1.0
    assert [each.token for each in sample(logits, [Row(params(temperature=0.0))] * 3)] == [0, 5, 3]


def test_the_draw_never_falls_on_a_token_without_probability() -> None:
    logits = np.tile([-np.inf, 1.0, 1.0, -np.inf], (1000, 1))
    drawn = [each.token for each in sample(logits, [Row(params(seed=seed)) for seed in range(1000)])]
    assert_drawn_from(np.array([0, 0.5, 0.5, 0]), drawn)


# Log-probabilities


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def test_logprobs_are_of_the_models_own_logits_and_as_many_as_each_row_wants() -> None:
    logits = np.random.default_rng(3).normal(size=(4, VOCABULARY))
    wanted = [None, 0, 2, 5]
    rows = [
        Row(params(logprobs=k, temperature=0.0, logit_bias={9: 100.0}, repetition_penalty=1.5), prompt=[9])
        for k in wanted
    ]
    found = [each.logprobs for each in sample(logits, rows)]
    assert found[0] is None
    for n in (1, 2, 3):
        expected, each = log_softmax(logits[n]), found[n]
        assert each is not None
        assert each.token == 9
        assert each.logprob == pytest.approx(expected[9], abs=1e-5)
        assert each.rank == 1 + int((expected > expected[9]).sum())
        assert [token for token, _ in each.top] == np.argsort(-expected)[: wanted[n]].tolist()
        assert [value for _, value in each.top] == pytest.approx(np.sort(expected)[::-1][: wanted[n]], abs=1e-5)


# Rows that cannot be sampled


@pytest.mark.parametrize("wrong", [math.nan, math.inf], ids=["NaN", "infinite"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_broken_logits_fails_alone(wrong: float, temperature: float) -> None:
    logits = np.random.default_rng(4).normal(size=(3, VOCABULARY))
    rows = [Row(params(temperature=temperature, seed=n, logprobs=2)) for n in range(3)]
    alone = [sample(logits[n : n + 1], rows[n : n + 1])[0] for n in (0, 2)]
    logits[1, 6] = wrong
    first, broken, last = sample(logits, rows)
    assert broken.error is not None
    assert broken.logprobs is None
    assert [first, last] == alone


def test_a_row_without_any_finite_logit_fails() -> None:
    assert sample(np.full((1, 8), -np.inf), [Row(params())])[0].error is not None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_every_token_is_banned_fails(temperature: float) -> None:
    logits = np.full((1, 4), -np.inf)
    logits[0, 2] = 1.0
    row = Row(params(temperature=temperature, min_tokens=3, eos_token_ids=(2,)))
    assert sample(logits, [row])[0].error is not None
    assert sample(logits, [Row(row.params, output=[0, 0, 0])])[0].token == 2
