"""Recorded decoding steps: which are, where they read and write, and what keeps that memory alive.

That their answers are those of steps one by one shows in test_overlap.py; tests/engine/gpu records real graphs.
"""

import gc
import weakref
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.errors import LoadError
from headwater_engine.kernels.interface import BLOCK_SIZE, Replay
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.worker.graphs import DecodeGraphs, cuda_recorder, ladder
from headwater_engine.worker.inputs import Batch, Inputs
from headwater_engine.worker.seats import Seats

MOST, LONGEST = 20, 70


def same_memory(run: Callable[[], Tensor]) -> Replay:
    """Computes anew, into the memory of the first time."""
    output = run()
    return lambda: output.copy_(run())


def recorded(
    forward: Callable[[Batch], Tensor],
    record: Callable[[Callable[[], Tensor]], Replay] = same_memory,
    groups: int = 0,
) -> tuple[DecodeGraphs, Inputs, list[float]]:
    kernels = TorchKernels()
    kernels.prefix_groups = groups
    seats = Seats(MOST, LONGEST, kernels.device)
    inputs, told = Inputs(kernels, seats, 100, None), []
    nobody = Seat(MOST, [0], 0, SamplingParams(max_tokens=1, temperature=0))
    seats.take(Step(0, [], [nobody], [(MOST, [9])], [], []))
    rows = SamplingRows(10, kernels.device)
    rows.seat(MOST, nobody.sampling, [])
    choose = lambda hidden, batch, sampling: hidden + sampling.filters  # noqa: E731
    graphs = DecodeGraphs(forward, choose, inputs, rows, record, ladder(MOST), told.append)
    return graphs, inputs, told


def test_the_ladder_reaches_the_top_and_leaves_few_rows_idle() -> None:
    for most in (1, 2, 3, 7, 16, 17, 64, 250):
        sizes = ladder(most)
        assert sizes[0] == most
        assert sizes[-1] == 1
        assert all(high - low <= 16 for high, low in pairwise(sizes))


def test_the_largest_comes_first_and_it_is_told_how_far_it_got() -> None:
    sizes: list[int] = []

    def forward(batch: Batch) -> Tensor:
        sizes.append(len(batch.flat.tokens))
        return batch.flat.tokens * 2

    _, _, told = recorded(forward)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == MOST
    assert told[0] == 0 and told == sorted(told) and told[-1] < 1


def test_what_is_recorded_is_a_step_of_nobodys() -> None:
    """A kernel that reads what stands there by chance could read and write where there is nothing, which ends a GPU."""
    batches: list[int] = []

    def forward(batch: Batch) -> Tensor:
        size, attention = len(batch.flat.tokens), batch.flat.attention
        assert batch.flat.tokens.tolist() == attention.positions.tolist() == [0] * size
        assert attention.query_starts.tolist() == list(range(size + 1))
        assert attention.context_lengths.tolist() == [1] * size
        assert attention.block_tables[:, 0].tolist() == [9] * size
        assert attention.slots.tolist() == [9 * BLOCK_SIZE] * size
        assert batch.flat.seats.tolist() == [MOST] * size
        assert batch.numbers.inverse_temperatures.tolist() == [0] * size
        if attention.prefixes is not None:
            assert all(not each.any() for each in attention.prefixes)
        batches.append(size)
        return batch.flat.tokens * 2

    recorded(forward, groups=3)
    assert set(batches) == set(ladder(MOST))


def test_only_steps_of_single_tokens_that_are_all_sampled_are_recorded() -> None:
    graphs, _, _ = recorded(lambda batch: batch.flat.tokens * 2)
    decode = Span(0, 5, 1, 1, 0)
    assert graphs.size_for([decode]) == 1
    assert graphs.size_for([decode] * 3) == 4
    assert graphs.size_for([decode] * MOST) == MOST
    assert graphs.size_for([decode] * (MOST + 1)) is None
    for other in (Span(1, 0, 2, 1, 0), Span(1, 5, 1, 0, 0), Span(1, 5, 2, 2, 0), Span(1, 5, 1, 1, 1)):
        assert graphs.size_for([decode, other]) is None


def test_what_is_on_its_way_home_is_not_written_over() -> None:
    """The next replay gives the same memory, and it may come before the copy of this one is done."""
    value = torch.zeros(1, dtype=torch.long)
    graphs, _, _ = recorded(lambda batch: batch.flat.tokens * 0 + value)
    value[0] = 7
    graphs.launch(2)
    first = graphs.sample(2, filters=True)
    value[0] = 18
    graphs.launch(2)
    assert graphs.sample(2, filters=True).tolist() == [19, 19]
    assert first.tolist() == [8, 8]
    assert graphs.sample(2, filters=False).tolist() == [18, 18]


def test_steps_with_shared_prefixes_have_recordings_of_their_own() -> None:
    """Which leave their hidden states where sampling was recorded to find them."""
    graphs, _, _ = recorded(
        lambda batch: batch.flat.tokens * 0 + 5 * (batch.flat.attention.prefixes is not None), groups=8
    )
    assert graphs.launch(4, shared=True).tolist() == [5] * 4
    assert graphs.sample(4, filters=True).tolist() == [6] * 4
    assert graphs.launch(4).tolist() == [0] * 4
    assert graphs.sample(4, filters=False).tolist() == [0] * 4


def test_what_cannot_be_recorded_is_said_and_how_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: object, pool: int) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.raises(LoadError, match=r"cannot be recorded: CUDA error: .* capturing\. --enforce-eager"):
        cuda_recorder()(lambda: torch.zeros(1))


def test_what_a_recording_reads_stays_alive() -> None:
    """Though the recorder keeps nothing of what it ran: a CUDA graph knows addresses only."""
    read: list[weakref.ref[Tensor]] = []

    def forward(batch: Batch) -> Tensor:
        attention = batch.flat.attention
        for tensor in (
            *batch.flat,
            batch.numbers.words,
            *(getattr(attention, field.name) for field in fields(attention)),
        ):
            if isinstance(tensor, Tensor):
                read.append(weakref.ref(tensor if tensor._base is None else tensor._base))
        return batch.flat.tokens * 2

    def forgetting(run: Callable[[], Tensor]) -> Replay:
        output = run()
        return lambda: output

    kept = recorded(forward, forgetting)
    gc.collect()
    assert kept
    assert len(read) > 9 * len(ladder(MOST)) - 1
    assert all(each() is not None for each in read)
