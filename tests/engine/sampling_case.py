"""Logits and parameters, usual and hostile ones, for kernels that sample and for their reference."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from headwater_engine.kernels.interface import Kernels, SamplingBatch
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import SamplingRows

REFERENCE = TorchKernels()


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, **changes})


def batch_of(kernels: Kernels, vocabulary: int, asked: list[SamplingParams], seen: list[int]) -> SamplingBatch:
    rows = SamplingRows(vocabulary, kernels.device)
    tokens = [token % vocabulary for token in seen]
    for index, each in enumerate(asked):
        rows.seat(index, each, tokens[::2], tokens[1::2])
    return rows.batch(range(len(asked)))


def assert_as_the_reference(kernels: Kernels, logits: Tensor, asked: list[SamplingParams], seen: list[int]) -> None:
    ours, theirs = logits.to(kernels.device, copy=True), logits.clone()
    found = kernels.sample(ours, batch_of(kernels, logits.shape[1], asked, seen))
    expected = REFERENCE.sample(theirs, batch_of(REFERENCE, logits.shape[1], asked, seen))
    assert found.tolist() == expected.tolist()
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0, equal_nan=True)


def made_up(kind: str, rows: int, vocabulary: int, seed: int) -> Tensor:
    """Logits [rows, vocabulary]."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(rows, vocabulary))
    match kind:
        case "peaked":
            logits[:, :: max(1, vocabulary // 5)] += np.arange(len(logits[0, :: max(1, vocabulary // 5)])) * 4
        case "ties":
            logits = np.round(logits)
        case "equal":
            logits[:] = -1.25
        case "zeros of both signs":
            logits = np.where(logits > 0, 0.0, -0.0)
        case "one finite":
            logits[:] = -np.inf
            logits[np.arange(rows), rng.integers(0, vocabulary, rows)] = 2.0
        case "half -inf":
            logits[rng.random(logits.shape) < 0.5] = -np.inf
        case "broken":
            logits[np.arange(rows), rng.integers(0, vocabulary, rows)] = rng.choice([np.nan, np.inf, -np.nan], rows)
        case "none finite":
            logits[:] = -np.inf
        case "huge":
            logits *= 1e37
        case "tiny":
            logits *= 1e-42
    return torch.tensor(logits, dtype=torch.float32)


KINDS = [
    "normal",
    "peaked",
    "ties",
    "equal",
    "zeros of both signs",
    "one finite",
    "half -inf",
    "broken",
    "none finite",
    "huge",
    "tiny",
]
some_params = st.builds(
    params,
    temperature=st.sampled_from([0.0, 1e-5, 0.3, 0.7, 1.0, 2.0, 1e4, 1e30]),
    top_k=st.sampled_from([-1, 0, 1, 2, 5, 63, 64, 65, 100, 10**6]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.001, 0.0]),
    min_p=st.sampled_from([0.0, 1e-12, 0.05, 0.5, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.31, -0.37]),
    repetition_penalty=st.sampled_from([1.0, 1.37, 0.71]),
    logit_bias=st.sampled_from([{}, {0: 3.5}, {0: -100.0}]),
    min_tokens=st.sampled_from([0, 50]),
    eos_token_ids=st.sampled_from([(), (0,), (0, 5)]),
)
asked_of_a_batch = st.lists(some_params, min_size=1, max_size=4)
seen_tokens = st.lists(st.integers(0, 300), max_size=20)
