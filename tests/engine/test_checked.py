"""Tokens that are drawn before anybody knows which ones may come are those that masks would have given."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_engine.core.step import Judge, Refused, TokenMasks
from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import Kernels
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.sampling.checked import draw_again
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import WORDS, SamplingRows, numbers_of
from tests.engine.sampling_case import KINDS, made_up, params, seen_tokens

CPP = CppKernels(torch.float32, Products.FLOAT32)
asked_with_a_form = st.lists(
    st.builds(
        params,
        temperature=st.sampled_from([0.0, 1e-5, 0.3, 0.7, 1.0, 2.0, 1e4, 1e30]),
        top_k=st.sampled_from([0, 1, 2, 5, 63, 100]),
        top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.001, 0.0]),
        min_p=st.sampled_from([0.0, 0.0, 1e-12, 0.05, 0.5, 1.0]),
        seed=st.integers(0, 2**64 - 1),
        presence_penalty=st.sampled_from([0.0, 0.7]),
        repetition_penalty=st.sampled_from([1.0, 1.37]),
        logit_bias=st.sampled_from([{}, {0: 3.5}, {0: -100.0}]),
    ),
    min_size=1,
    max_size=4,
)


class Looking:
    """A judge with masks of its own."""

    def __init__(self, allowed: np.ndarray, words: int) -> None:
        self.bits = np.zeros((len(allowed), words), dtype=np.int32)
        packed = np.packbits(allowed, axis=1, bitorder="little")
        self.bits.view(np.uint8)[:, : packed.shape[1]] = packed
        self.allowed = allowed
        self.refused: list[int] = []

    def look(self, drawn: Mapping[int, int]) -> Refused:
        self.refused = [row for row, token in drawn.items() if token < 0 or not self.allowed[row, token]]
        return Refused(set(self.refused), TokenMasks(self.refused, self.bits[self.refused].data))


def drawn_both_ways(
    kernels: Kernels, logits: torch.Tensor, asked: list[SamplingParams], seen: list[int], allowed: np.ndarray
) -> tuple[list[int], list[int], list[int]]:
    """With masks, and without; and which rows had to be drawn again."""
    vocabulary, seats = logits.shape[1], list(range(len(asked)))
    rows, judge = SamplingRows(vocabulary, kernels.device), Looking(allowed, -(-vocabulary // 32))
    for index, each in enumerate(asked):
        rows.seat(index, each, seen[::2], seen[1::2], masked=True)
    rows.mask(seats, judge.bits)
    with_masks = kernels.sample(logits.clone(), rows.batch(seats)).tolist()
    rows.mask(seats, np.zeros_like(judge.bits))  # they must not be looked at
    own, words = logits.clone(), torch.empty((WORDS, len(seats)), dtype=torch.int32)
    rows.pack(seats, words.numpy())
    numbers = numbers_of(words)
    batch = rows.batch(seats, numbers, frozenset(seats))
    tokens = kernels.sample(own, batch)
    silent = draw_again(kernels, rows, own, batch, numbers, seats, tokens, Judge(frozenset(seats), judge.look))
    assert not silent
    return with_masks, tokens.tolist(), judge.refused


@settings(max_examples=400, deadline=None)
@given(
    kernels=st.sampled_from([CPP, TorchKernels()]),
    kind=st.sampled_from(KINDS),
    vocabulary=st.sampled_from([1, 2, 7, 24, 64, 65, 500]),
    asked=asked_with_a_form,
    seen=seen_tokens,
    seed=st.integers(0, 999),
    share=st.sampled_from([0.03, 0.3, 0.7, 0.97]),
)
def test_answers_are_the_same_with_masks_and_without(
    kernels: Kernels, kind: str, vocabulary: int, asked: list[SamplingParams], seen: list[int], seed: int, share: float
) -> None:
    allowed = np.random.default_rng(seed).random((len(asked), vocabulary)) < share
    allowed[:, seed % vocabulary] = True
    seen = [token % vocabulary for token in seen]
    expected, tokens, _ = drawn_both_ways(kernels, made_up(kind, len(asked), vocabulary, seed), asked, seen, allowed)
    assert tokens == expected


@pytest.mark.parametrize("asked", [params(top_p=0.9), params(top_k=20, top_p=0.95), params(min_p=0.05)])
def test_answers_are_the_same_where_tokens_were_filtered_that_a_mask_would_bring_back(asked: SamplingParams) -> None:
    """Likely tokens must not come, so that less likely ones are within the share that top-p leaves."""
    rng, count = np.random.default_rng(0), 3000
    logits = torch.tensor(np.sort(rng.normal(scale=2.5, size=(count, 40)))[:, ::-1].copy(), dtype=torch.float32)
    allowed = rng.random((count, 40)) < 0.5
    allowed[:, 39] = True
    rows = [params(top_k=asked.top_k, top_p=asked.top_p, min_p=asked.min_p, seed=seed) for seed in range(count)]
    expected, tokens, again = drawn_both_ways(CPP, logits, rows, [], allowed)
    assert tokens == expected
    assert 0.2 * count < len(again) < 0.8 * count


def test_a_token_that_is_nearly_sure_needs_no_mask() -> None:
    logits = torch.zeros(3, 500)
    logits[:, 7] = 12.0
    allowed = np.ones((3, 500), dtype=bool)
    asked = [params(top_p=0.9, seed=1), params(top_k=20, top_p=0.95, seed=2), params(temperature=0.0)]
    expected, tokens, again = drawn_both_ways(CPP, logits, asked, [], allowed)
    assert (tokens, again) == (expected, []) == ([7, 7, 7], [])
