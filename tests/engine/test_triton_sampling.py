"""Triton's kernels that sample give the tokens of the reference: on a GPU, or in Triton's interpreter without one.

The interpreter takes a good part of a millisecond for each operation of a program, so that vocabularies are small.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_engine.sampling.params import SamplingParams
from tests.engine.sampling_case import (
    KINDS,
    assert_as_the_reference,
    assert_scored_as_the_reference,
    made_up,
    params,
    seen_tokens,
    some_params,
)

pytest.importorskip("triton", reason="torch for CPUs comes without Triton")

from headwater_engine.kernels.gpu import TritonKernels

KERNELS = TritonKernels(torch.float32, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@settings(max_examples=25)
@given(
    st.sampled_from(KINDS), st.sampled_from([1, 7, 65, 300]), st.lists(some_params, min_size=1, max_size=2), seen_tokens
)
def test_the_triton_kernel_gives_the_references_tokens(
    kind: str, vocabulary: int, asked: list[SamplingParams], seen: list[int]
) -> None:
    assert_as_the_reference(KERNELS, made_up(kind, len(asked), vocabulary, 3), asked, seen)


@settings(max_examples=15)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([1, 7, 65, 300]),
    st.lists(some_params, min_size=1, max_size=2),
    st.integers(0, 20),
)
def test_log_probabilities_are_those_of_the_logits_before_any_change(
    kind: str, vocabulary: int, asked: list[SamplingParams], k: int
) -> None:
    assert_scored_as_the_reference(KERNELS, made_up(kind, len(asked), vocabulary, 3), asked, [1, 2, 2], k)


@pytest.mark.parametrize("kind", ["peaked", "ties"])
def test_rows_of_several_pieces_are_scored(kind: str) -> None:
    asked = [params(presence_penalty=2.0, allowed_token_ids=(5000, 6000)), params(), params(temperature=0.0)]
    assert_scored_as_the_reference(KERNELS, made_up(kind, 3, 10_000, 4), asked, [5000], 20)


@pytest.mark.parametrize("kind", ["peaked", "ties"])
def test_the_triton_kernel_cuts_rows_of_several_pieces(kind: str) -> None:
    asked = [params(top_k=20, top_p=0.8, temperature=0.7, repetition_penalty=1.05), params(seed=5), params(top_p=0.97)]
    assert_as_the_reference(KERNELS, made_up(kind, len(asked), 10_000, 4), asked, list(range(0, 9000, 2)))


def test_the_triton_kernel_draws_from_a_large_vocabulary() -> None:
    asked = [params(seed=seed, temperature=seed % 3, min_p=seed % 2 * 0.01) for seed in range(4)]
    assert_as_the_reference(KERNELS, made_up("normal", 4, 151_936, 5), asked, [])
