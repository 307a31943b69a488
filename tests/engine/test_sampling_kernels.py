"""The C++ kernel that samples gives the tokens of the reference; and the reference keeps what it should."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from headwater_engine.kernels import reference_sampling
from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import WEIGHT_ONE, Kernels
from headwater_engine.sampling.noise import noise_keys
from headwater_engine.sampling.params import SamplingParams
from tests.engine.sampling_case import (
    KINDS,
    REFERENCE,
    asked_of_a_batch,
    assert_as_the_reference,
    batch_of,
    made_up,
    params,
    seen_tokens,
)

CPP = CppKernels(torch.float32, Products.FLOAT32)
INFINITY = float("inf")


@settings(max_examples=300)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([1, 2, 7, 24, 64, 65, 500, 4100]),
    asked_of_a_batch,
    seen_tokens,
    st.integers(0, 99),
    st.sets(st.integers(0, 3)),
)
def test_the_c_kernel_gives_the_references_tokens(
    kind: str, vocabulary: int, asked: list[SamplingParams], seen: list[int], seed: int, unmasked: set[int]
) -> None:
    """Also where it says that there is none without a mask."""
    assert_as_the_reference(CPP, made_up(kind, len(asked), vocabulary, seed), asked, seen, unmasked)


@settings(max_examples=100)
@given(
    st.sampled_from([CPP, REFERENCE]),
    st.sampled_from(["normal", "ties", "broken"]),
    st.sampled_from([7, 65, 500]),
    asked_of_a_batch,
    st.integers(0, 99),
    st.data(),
)
def test_rows_that_are_drawn_alone_become_what_they_become_among_others(
    kernels: Kernels, kind: str, vocabulary: int, asked: list[SamplingParams], seed: int, data: st.DataObject
) -> None:
    plain = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}
    asked = [structs.replace(each, logit_bias={}, **plain) for each in asked]
    only = data.draw(st.lists(st.sampled_from(range(len(asked))), unique=True))
    logits, batch = made_up(kind, len(asked), vocabulary, seed), batch_of(kernels, vocabulary, asked, [])
    expected = kernels.sample(logits.clone(), batch)[only].tolist()
    changed = logits.clone()
    found = kernels.sample(changed, replace(batch, only=torch.tensor(only, dtype=torch.long)))
    assert found.tolist() == expected
    others = [row for row in range(len(asked)) if row not in only]
    assert torch.equal(changed[others].view(torch.int32), logits[others].view(torch.int32))


def test_a_row_that_there_is_not_is_refused() -> None:
    batch = batch_of(CPP, 8, [params()], [])
    for row in (-1, 1):
        with pytest.raises(RuntimeError, match="no such row"):
            CPP.sample(torch.zeros(1, 8), replace(batch, only=torch.tensor([row])))


@pytest.mark.parametrize("kind", ["normal", "peaked", "ties", "equal"])
def test_the_c_kernel_gives_the_references_tokens_of_large_vocabularies(kind: str) -> None:
    asked = [
        params(seed=7 * number, **each)
        for number, each in enumerate(
            [
                {"temperature": 0.0},
                {},
                {"top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.05},
                {"top_k": 5000},
                {"top_p": 0.9, "temperature": 0.7},
                {"top_p": 0.9, "temperature": 3.0, "presence_penalty": 1.5},
                {"min_p": 0.02},
            ]
        )
    ]
    assert_as_the_reference(CPP, made_up(kind, len(asked), 151_936, 1), asked, list(range(0, 9000, 2)))


def test_threads_that_take_many_rows_do_not_mix_them_up() -> None:
    asked = [
        params(seed=number, temperature=number % 3 * 0.5, top_k=number % 4 * 10, top_p=1 - number % 5 * 0.2)
        for number in range(200)
    ]
    assert_as_the_reference(CPP, made_up("peaked", 200, 700, 2), asked, [])


def test_a_batch_of_no_rows_gives_no_tokens() -> None:
    assert CPP.sample(torch.empty(0, 8), batch_of(CPP, 8, [], [])).shape == (0,)


def test_the_c_kernel_refuses_what_does_not_fit() -> None:
    batch = batch_of(CPP, 8, [params(presence_penalty=1.0)], [])
    for logits in (torch.zeros(2, 8), torch.zeros(1, 9), torch.zeros(1, 8).double(), torch.zeros(1, 16)[:, ::2]):
        with pytest.raises(RuntimeError):
            CPP.sample(logits, batch)


# The reference


def kept_by_the_book(logits: np.ndarray, each: SamplingParams) -> list[set[int]]:
    """Tokens that may be drawn, in float64, by a strict and by a generous reading of the thresholds."""
    scaled = logits.astype(np.float64) / each.temperature
    order = np.argsort(-scaled, kind="stable")[: each.top_k or None]
    weights = np.exp(scaled[order] - scaled[order[0]])
    shares = weights / weights.sum()
    before = np.cumsum(shares) - shares
    return [
        {
            int(token)
            for n, token in enumerate(order)
            if (n == 0 or before[n] < each.top_p + slack or each.top_p == 1) and weights[n] >= each.min_p - slack
        }
        for slack in (-1e-6, 1e-6)
    ]


@given(
    st.sampled_from(["normal", "peaked", "ties", "equal"]),
    st.sampled_from([1, 2, 30, 2000]),
    st.builds(
        params,
        temperature=st.sampled_from([0.3, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 3, 40]),
        top_p=st.sampled_from([1.0, 0.99, 0.6, 0.0]),
        min_p=st.sampled_from([0.0, 0.01, 0.4, 1.0]),
    ),
    st.integers(0, 99),
)
def test_the_reference_keeps_what_the_book_says(kind: str, vocabulary: int, each: SamplingParams, seed: int) -> None:
    logits = made_up(kind, 1, vocabulary, seed)
    batch = batch_of(REFERENCE, vocabulary, [each], [])
    kept = reference_sampling.kept_tokens(logits, logits.amax(dim=-1, keepdim=True), batch)[0]
    strict, generous = kept_by_the_book(logits[0].numpy(), each)
    assert strict <= set(kept.nonzero().flatten().tolist()) <= generous


def test_weights_are_shares_of_the_likeliest() -> None:
    x = torch.cat([torch.linspace(-31, 0, 20_000), torch.tensor([0.0, -0.0, -1e-8, -1e30, -INFINITY])])
    expected = (x.double().exp() * WEIGHT_ONE).numpy()
    found = reference_sampling.weights_of(x).numpy()
    assert found.max() == WEIGHT_ONE
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1)


# Noise


def bits_of(seeds: np.ndarray, positions: np.ndarray, vocabulary: int) -> np.ndarray:
    return reference_sampling.random_bits(torch.from_numpy(noise_keys(seeds, positions).copy()), vocabulary).numpy()


def test_keys_are_those_of_splitmix64() -> None:
    """Two rounds of the published function: its outputs for the seed 1234567 are known (Vigna's splitmix64.c)."""
    state, known = 1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    step = 0x9E3779B97F4A7C15
    assert [mixed((state + (n + 1) * step) % 2**64) for n in range(3)] == known
    low, high = noise_keys(np.array([1234567], dtype=np.uint64), np.array([4])).view(np.uint32)
    expected = mixed((mixed((1234567 + step) % 2**64) + 5 * step + step) % 2**64)
    assert (int(high[0]) << 32) + int(low[0]) == expected


def test_noise_of_neighbours_is_unrelated() -> None:
    """In seed, position and token, down to single bits."""
    seeds, positions = (each.ravel() for each in np.meshgrid(np.arange(48, dtype=np.uint64), np.arange(48)))
    bits = bits_of(seeds, positions, 48).reshape(48, 48, 48)
    assert len(np.unique(bits)) > 0.9999 * bits.size
    for axis in range(3):
        first, second = (np.take(bits, span, axis=axis) for span in (range(47), range(1, 48)))
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / math.sqrt(first.size)
        flipped = ((first ^ second).reshape(-1, 1) >> np.arange(31)) & 1
        assert np.abs(flipped.mean(axis=0) - 0.5).max() < 5 / math.sqrt(4 * first.size)


def test_noise_is_gumbels() -> None:
    """By its distribution function, to which the largest distance is Kolmogorov's statistic; at both ends, too."""
    keys = torch.from_numpy(noise_keys(np.arange(20, dtype=np.uint64), np.zeros(20)).copy())
    noise = np.sort(reference_sampling.gumbel(keys, 50_000).numpy().ravel().astype(np.float64))
    uniform = np.exp(-np.exp(-noise))
    grid = (np.arange(len(noise)) + 0.5) / len(noise)
    assert np.abs(uniform - grid).max() < 1.95 / math.sqrt(len(noise))
    extremes = torch.tensor([0, 1, 2**30, 2**31 - 2, 2**31 - 1])
    found = reference_sampling.noise_of(extremes).double().numpy()
    v = np.minimum((extremes.numpy() + 0.5) / 2**31, 1 - 2.0**-24)
    np.testing.assert_allclose(found, -np.log(-np.log1p(-v)), rtol=1e-5)
