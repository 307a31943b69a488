"""The sampler draws from the distribution that a naive reading of the parameters gives, whatever is in the batch."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.sampling import sampler as sampler_module
from headwater_engine.sampling.noise import uniform
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.sampler import Sampled, Sampler

VOCABULARY = 24


@dataclass(slots=True)
class Row:
    params: SamplingParams
    prompt: list[int] = field(default_factory=lambda: [1])
    output: list[int] = field(default_factory=list)


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, **changes})


def sample(logits: np.ndarray, rows: list[Row]) -> list[Sampled]:
    return Sampler().sample(torch.tensor(logits, dtype=torch.float32), rows)


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


def drawn_distribution(logits: np.ndarray, row: Row, monkeypatch: pytest.MonkeyPatch, draws: int) -> np.ndarray:
    """Shares of the tokens over an even grid of noise: the distribution itself, to one part in `draws`."""
    points = iter((np.arange(draws) + 0.5) / draws)
    monkeypatch.setattr(sampler_module, "uniform", lambda seed, position: float(next(points)))
    many = Sampler().sample(torch.tensor(np.tile(logits, (draws, 1)), dtype=torch.float32), [row] * draws)
    return np.bincount([each.token for each in many], minlength=len(logits)) / draws


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
def test_tokens_come_with_the_probabilities_of_the_reference(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.random.default_rng(7).normal(scale=2.0, size=VOCABULARY)
    row = Row(params(**changes), prompt=[1, 2, 2], output=[5, 6, 6, 6])
    expected = distribution(logits, row)
    found = drawn_distribution(logits, row, monkeypatch, draws=4000)
    assert (expected[found > 0] > 0).all()
    assert (found[expected > 1 / 4000] > 0).all()
    np.testing.assert_allclose(found, expected, atol=1.5 / 4000)


def test_seeds_draw_from_the_distribution() -> None:
    """Pearson's chi-square over seeds, and over the positions of one seed; the seeds are fixed."""
    logits = np.array([0.0, 0.5, 1.0, 1.5, 2.0, -1.0, 0.2, 0.9])
    expected = softmax(logits) * 4000
    by_seed = [Row(params(seed=seed)) for seed in range(4000)]
    by_position = [Row(params(seed=11), output=[0] * position) for position in range(4000)]
    for rows in (by_seed, by_position):
        drawn = [each.token for each in sample(np.tile(logits, (4000, 1)), rows)]
        counts = np.bincount(drawn, minlength=8)
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < 24.3, "beyond the 99.9th percentile of chi-square with 7 degrees of freedom"


def test_noise_of_neighbouring_seeds_is_unrelated() -> None:
    values = np.array([[uniform(seed, position) for position in range(64)] for seed in range(64)])
    assert ((values >= 0) & (values < 1)).all()
    assert len(np.unique(values)) == values.size
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.05


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


def test_the_draw_never_falls_on_a_removed_token_even_at_the_ends_of_the_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = np.array([[-np.inf, 1.0, 1.0, -np.inf]])
    for noise, expected in ((0.0, 1), (math.nextafter(1.0, 0.0), 2)):
        monkeypatch.setattr(sampler_module, "uniform", lambda seed, position, noise=noise: noise)
        assert sample(logits, [Row(params())])[0].token == expected


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


# Top-p over large vocabularies: a look at the likeliest tokens, or the full sort


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 6.0], ids=["equal", "flat", "normal", "peaked"])
def test_top_p_of_a_large_vocabulary_keeps_what_the_full_sort_keeps(
    top_p: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 5000
    logits = torch.tensor(np.random.default_rng(5).normal(scale=scale, size=size), dtype=torch.float32)
    row = params(top_p=top_p)
    noises = [0.0, *np.linspace(0.01, 0.99, 50).tolist(), math.nextafter(1.0, 0.0)]
    found = [sampler_module._draw(logits, row, noise) for noise in noises]
    monkeypatch.setattr(sampler_module, "_HEAD", size)
    sorted_fully = [sampler_module._draw(logits, row, noise) for noise in noises]
    kept = distribution(logits.numpy(), Row(row))
    # A draw may fall on the neighbour where both sums differ by a rounding error; never outside of what is kept.
    least = logits.numpy()[kept > 0].min() - 1e-4 * max(scale, 1e-3)
    assert all(logits[token] >= least for token in found)
    ranks = torch.empty(size, dtype=torch.long)
    ranks[logits.sort(descending=True, stable=True).indices] = torch.arange(size)
    if scale:
        assert all(abs(int(ranks[a]) - int(ranks[b])) <= 2 for a, b in zip(found, sorted_fully, strict=True))
