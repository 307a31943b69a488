"""Recorded decoding steps: what is written to the buffers that stay, and that answers are those of steps one by one.

A stand-in for the recorder computes anew on the same memory, as a CUDA graph does; tests/engine/gpu has the real one.
"""

import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.worker.graphs import DecodeGraphs, ladder
from headwater_engine.worker.inputs import Inputs
from headwater_engine.worker.worker import ModelWorker
from tests.engine.greedy import greedy_answers, make_engine
from tests.engine.tiny import make_tiny, reference_greedy

SPARE, MOST, LONGEST = 99, 20, 70


def replay(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    run()
    return run


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    """One token of each of a few sequences."""
    lengths = draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=MOST + 2))
    rng = random.Random(draw(st.integers(0, 1000)))
    blocks = rng.sample(range(SPARE), 98)
    width = -(-max(lengths) // BLOCK_SIZE)
    tables = np.array([[rng.choice(blocks) for _ in range(width)] for _ in lengths], dtype=np.int32)
    positions = np.array(lengths) - 1
    return Inputs(
        tokens=np.array([rng.randrange(1000) for _ in lengths]),
        positions=positions,
        slots=tables[np.arange(len(lengths)), positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE
        + positions % BLOCK_SIZE,
        block_tables=tables,
        query_starts=np.arange(len(lengths) + 1, dtype=np.int32),
        context_lengths=np.array(lengths, dtype=np.int32),
        sampled=np.arange(len(lengths)),
    )


@given(st.lists(inputs(), min_size=1, max_size=5))
def test_a_step_is_written_where_it_was_recorded_and_nobodys_rows_touch_nobodys_block(steps: list[Inputs]) -> None:
    seen: list[tuple[Tensor, AttentionBatch]] = []

    def step(tokens: Tensor, batch: AttentionBatch) -> Tensor:
        seen.append((tokens, batch))
        return tokens.double() * 2

    graphs = DecodeGraphs(step, replay, torch.device("cpu"), most=MOST, longest=LONGEST, spare_block=SPARE)
    addresses = {(len(tokens), tokens.data_ptr(), batch.slots.data_ptr()) for tokens, batch in seen}
    for each in steps:
        count = len(each.tokens)
        found = graphs.run(each)
        if count > MOST:
            assert found is None
            continue
        assert found is not None and found.tolist() == (each.tokens * 2).tolist()
        tokens, batch = seen[-1]
        assert (len(tokens), tokens.data_ptr(), batch.slots.data_ptr()) in addresses
        assert len(tokens) == min(size for size in ladder(MOST) if size >= count)
        width = each.block_tables.shape[1]
        for ours, theirs in (
            (batch.positions, each.positions),
            (batch.slots, each.slots),
            (batch.context_lengths, each.context_lengths),
            (batch.block_tables[:, :width], each.block_tables),
            (batch.query_starts[:-1], each.query_starts[:-1]),
        ):
            assert ours[:count].tolist() == theirs.tolist()
        assert (batch.slots[count:] // BLOCK_SIZE == SPARE).all()
        assert (batch.block_tables[count:, 0] == SPARE).all()
        assert (batch.context_lengths[count:] == 1).all()
        assert batch.query_starts.tolist() == list(range(len(tokens) + 1))


def test_what_a_recording_reads_stays_alive() -> None:
    """Though the recorder keeps nothing of what it ran: a CUDA graph knows addresses only."""
    read: list[weakref.ref[Tensor]] = []

    def step(tokens: Tensor, batch: AttentionBatch) -> Tensor:
        for tensor in (tokens, *(getattr(batch, field.name) for field in fields(batch))):
            if isinstance(tensor, Tensor):
                read.append(weakref.ref(tensor if tensor._base is None else tensor._base))
        return tokens

    def forgetting(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        output = run()
        return lambda: output

    graphs = DecodeGraphs(step, forgetting, torch.device("cpu"), most=4, longest=LONGEST, spare_block=SPARE)
    gc.collect()
    assert graphs
    assert read
    assert all(each() is not None for each in read)


def test_the_ladder_reaches_the_top_and_leaves_few_rows_idle() -> None:
    for most in (1, 2, 3, 7, 16, 17, 64, 250):
        sizes = ladder(most)
        assert sizes[0] == most
        assert sizes[-1] == 1
        assert all(high - low <= 16 for high, low in pairwise(sizes))


def test_greedy_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    folder = make_tiny("qwen3", tmp_path, head_dim=32)
    rng = random.Random(5)
    prompts = [[rng.randrange(256) for _ in range(rng.randint(1, 50))] for _ in range(19)]
    kernels = TorchKernels(torch.float32)
    model = load_model(resolve(str(folder)), kernels=kernels)
    engine = make_engine(model, kernels, 30, max_num_seqs=MOST, max_batched_tokens=50, reuse=True)
    worker = engine._worker
    assert isinstance(worker, ModelWorker)
    calls: list[int] = []

    def counting(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: calls.append(1) or run()  # type: ignore[func-returns-value]

    worker.warm_up(budget=50, sequences=13, longest=80, spare_block=30, record=counting)
    assert greedy_answers(engine, prompts, 12) == reference_greedy(folder, prompts, 12)
    assert len(calls) >= 12
