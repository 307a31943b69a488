"""Ranks that have parts of a vocabulary choose what one that has it all does, and say little to one another for it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import Kernels
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.ranks import sample_among
from headwater_engine.sampling.rows import SamplingRows
from tests.engine.sampling_case import KINDS, asked_of_a_batch, made_up, params
from tests.engine.thread_ranks import Table, ThreadRanks

CPP = CppKernels(torch.float32, Products.FLOAT32)


def chosen(
    size: int, kernels: Kernels, logits: Tensor, asked: list[SamplingParams], seen: list[int]
) -> tuple[list[int], list[int]]:
    """The tokens of all rows, and the bytes that each rank has sent."""
    vocabulary, table = logits.shape[1], Table(size)
    each = -(-vocabulary // size)
    padded = torch.nn.functional.pad(logits, (0, size * each - vocabulary), value=1e9)

    def choose(rank: int) -> list[int]:
        rows = SamplingRows(vocabulary, kernels.device)
        for index, own in enumerate(asked):
            rows.seat(index, own, seen[::2], seen[1::2])
        everybody, ranks = range(len(asked)), ThreadRanks(rank, table)
        part = padded[:, rank * each : (rank + 1) * each].clone()
        batch, wanted = rows.batch(everybody), rows.logprobs(everybody)
        return sample_among(ranks, kernels, part, batch, wanted, vocabulary).tokens.tolist()

    with ThreadPoolExecutor(size) as pool:
        first, *others = list(pool.map(choose, range(size)))
    assert all(other == first for other in others)
    return first, table.bytes


def alone(kernels: Kernels, logits: Tensor, asked: list[SamplingParams], seen: list[int]) -> list[int]:
    rows = SamplingRows(logits.shape[1], kernels.device)
    for index, each in enumerate(asked):
        rows.seat(index, each, seen[::2], seen[1::2])
    return kernels.sample(logits.clone(), rows.batch(range(len(asked)))).tolist()


simple = st.builds(params, temperature=st.sampled_from([0.0, 1e-5, 0.7, 1.0, 1e30]), seed=st.integers(0, 2**64 - 1))


@settings(max_examples=60)
@given(
    st.sampled_from([CPP, TorchKernels()]),
    st.sampled_from([2, 3, 4]),
    st.sampled_from(KINDS),
    st.sampled_from([7, 65, 500]),
    st.lists(simple, min_size=1, max_size=4) | asked_of_a_batch,
    st.integers(0, 99),
)
def test_ranks_choose_what_one_chooses_alone(
    kernels: Kernels, size: int, kind: str, vocabulary: int, asked: list[SamplingParams], seed: int
) -> None:
    asked = [each if each.allowed_token_ids is None else params(allowed_token_ids=(3, 5)) for each in asked]
    logits = made_up(kind, len(asked), vocabulary, seed)
    found, _ = chosen(size, kernels, logits, asked, [1, 2, 2])
    assert found == alone(kernels, logits, asked, [1, 2, 2])


def test_a_part_may_have_no_token_at_all() -> None:
    logits = made_up("normal", 2, 5, 1)
    asked = [params(seed=3), params(temperature=0.0)]
    assert chosen(4, CPP, logits, asked, [])[0] == alone(CPP, logits, asked, []), "the last rank has padding only"


def test_the_first_of_equals_is_chosen_wherever_it_is() -> None:
    logits = torch.zeros(1, 12)
    logits[0, [4, 7, 11]] = 2.0
    for asked in ([params(temperature=0.0)], [params(temperature=1e-5)]):
        found, _ = chosen(3, CPP, logits, asked, [])
        assert found == alone(CPP, logits, asked, [])


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ([params(temperature=0.0), params(seed=1), params(seed=2, temperature=0.3)], lambda rank: 3 * 12),
        ([params(seed=1), params(top_k=5)], lambda rank: 2 * 250 * 4 + (rank == 0) * 2 * 8),
        ([params(logprobs=0)], lambda rank: 250 * 4 + (rank == 0) * 8),
        ([params(logit_bias={1: 2.0})], lambda rank: 250 * 4 + (rank == 0) * 8),
        ([params(frequency_penalty=1.0)], lambda rank: 250 * 4 + (rank == 0) * 8),
        ([params(allowed_token_ids=(1, 2))], lambda rank: 250 * 4 + (rank == 0) * 8),
    ],
    ids=["largest only", "top-k", "log-probabilities", "biases", "penalties", "masks"],
)
def test_logits_come_together_only_where_the_largest_are_not_enough(
    asked: list[SamplingParams], sent: Callable[[int], int]
) -> None:
    _, by_rank = chosen(4, CPP, made_up("normal", len(asked), 1000, 2), asked, [])
    assert by_rank == [sent(rank) for rank in range(4)]
