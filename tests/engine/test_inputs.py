"""A step's spans as numbers on the device: by whichever kernels, and by way of two arenas in turn."""

import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.kernels.interface import Kernels
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.worker.inputs import Inputs, Outbox
from headwater_engine.worker.seats import Seats
from tests.engine.input_case import Layouts

seeds = st.integers(0, 10_000)


class Passed:
    """A mark of a device that gets to it when somebody waits; it knows all that were made."""

    every: ClassVar[list["Passed"]] = []

    def __init__(self) -> None:
        self.pending = 0
        self.every.append(self)

    def record(self) -> None:
        self.pending += 1

    def synchronize(self) -> None:
        self.pending = 0


def play(kernels: Kernels, seed: int, steps: int, mark: type[Passed] | None = None) -> None:
    layouts = Layouts(kernels, seed, mark)
    layouts.sit_down()
    rng = random.Random(seed)
    for _ in range(steps):
        rng.choice((layouts.sit_down, layouts.grow, layouts.grow))()
        rng.choice((layouts.mixed, layouts.decoding))()


@given(seeds)
def test_inputs_are_what_a_loop_over_spans_says(seed: int) -> None:
    play(TorchKernels(), seed, 6)


@given(seeds)
def test_by_way_of_arenas_as_well(seed: int) -> None:
    play(TorchKernels(), seed, 6, Passed)


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_a_kernel_spreads_them_as_the_reference_does(seed: int) -> None:
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    from headwater_engine.kernels.gpu import TritonKernels

    play(TritonKernels(torch.float32, torch.device("cuda" if torch.cuda.is_available() else "cpu")), seed, 3)


def test_an_arena_is_not_written_to_while_it_is_read() -> None:
    """Its copy may take until somebody waits for it; that of the step before goes on meanwhile."""
    Passed.every.clear()
    outbox = Outbox(8, torch.device("cpu"), Passed)
    seen: list[np.ndarray] = []
    for step in range(5):
        arena = outbox.arenas[outbox.take_turn()]
        reading = [mark for mark in Passed.every if mark.pending]
        assert len(reading) == min(step, 1), "the copy of the last step is left alone, and that before it is done"
        assert step == 0 or not np.shares_memory(arena, seen[-1])
        arena[:] = step
        outbox.send(8)
        seen.append(arena)
        assert outbox.there.tolist() == [step] * 8
    assert len(Passed.every) == 2


def test_on_a_cpu_nothing_is_copied() -> None:
    outbox = Outbox(8, torch.device("cpu"), None)
    assert np.shares_memory(outbox.arenas[outbox.take_turn()], outbox.there.numpy())


class Asking(TorchKernels):
    prefix_groups = 8


@pytest.mark.parametrize("mark", [None, Passed])
def test_who_decodes_behind_a_shared_prefix_is_told(mark: type[Passed] | None) -> None:
    """Of three that decode, two share 130 blocks; a prompt has them, too, and is none of them."""
    shared, params = list(range(130)), SamplingParams(max_tokens=9)
    tables = [[*shared, 500], [501, *shared], [*shared, 502, 503], [*shared, 504]]
    seats = Seats(4, 3000, torch.device("cpu"))
    rows, inputs = SamplingRows(10, seats.on_device.blocks.device), Inputs(Asking(), seats, 100, mark)
    seated = [Seat(index, [1] * 2090, 0, params) for index in range(4)]
    seats.take(Step(1, [], seated, list(enumerate(tables)), [], []))
    for index in range(4):
        rows.seat(index, params, [])
    spans = [Span(index, 2085, 1, 1, 0) for index in (0, 1, 2)]
    attention = inputs.lay_out([*spans, Span(3, 2085, 2, 1, 0)], rows).flat.attention
    assert attention.decodes == 3
    assert attention.prefixes is not None
    members, starts, lengths, skipped = (each.tolist() for each in attention.prefixes)
    assert members[:2] == [0, 2]
    assert starts == [0] + [2] * 8
    assert lengths[0] == 2080
    assert skipped == [2080, 0, 2080, 0]
    assert inputs.lay_out([spans[0], spans[1]], rows).flat.attention.prefixes is None
