"""Logits and parameters, usual and hostile ones, for kernels that sample and for their reference."""

from collections.abc import Set
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor

from headwater_engine.kernels.interface import Kernels, SamplingBatch, Scores
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.rows import SamplingRows

REFERENCE = TorchKernels()


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, **changes})


def batch_of(
    kernels: Kernels,
    vocabulary: int,
    asked: list[SamplingParams],
    seen: list[int],
    unmasked: Set[int] = frozenset(),
) -> SamplingBatch:
    rows = SamplingRows(vocabulary, kernels.device)
    tokens = [token % vocabulary for token in seen]
    for index, each in enumerate(asked):
        if each.allowed_token_ids is not None:
            each = replace(each, allowed_token_ids=tuple(token % vocabulary for token in each.allowed_token_ids))
        rows.seat(index, each, tokens[::2], tokens[1::2])
    return rows.batch(range(len(asked)), unmasked=unmasked)


def assert_as_the_reference(
    kernels: Kernels,
    logits: Tensor,
    asked: list[SamplingParams],
    seen: list[int],
    unmasked: Set[int] = frozenset(),
) -> None:
    """By tokens, and by the scores that they were chosen for, to the last bit."""
    ours, theirs = logits.to(kernels.device, copy=True), logits.clone()
    found = kernels.maxima(ours, batch_of(kernels, logits.shape[1], asked, seen, unmasked))
    expected = REFERENCE.maxima(theirs, batch_of(REFERENCE, logits.shape[1], asked, seen, unmasked))
    assert found.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(found.best.cpu(), expected.best, rtol=0, atol=0, equal_nan=True)
    some = expected.best.isfinite()
    torch.testing.assert_close(found.scores.cpu()[some], expected.scores[some], rtol=0, atol=0)


def assert_scored_as_the_reference(
    kernels: Kernels, logits: Tensor, asked: list[SamplingParams], seen: list[int], k: int
) -> None:
    """Of every other row. Which of equally likely tokens come is anybody's choice."""
    size, rows = logits.shape[1], torch.arange(0, len(logits), 2)
    found, scores = kernels.sample_scored(
        logits.to(kernels.device, copy=True), batch_of(kernels, size, asked, seen), rows.to(kernels.device), k
    )
    expected, theirs = REFERENCE.sample_scored(logits.clone(), batch_of(REFERENCE, size, asked, seen), rows, k)
    assert found.tolist() == expected.tolist()
    some = expected[rows] >= 0
    ours = Scores(*(each.cpu()[some] for each in scores))
    theirs = Scores(*(each[some] for each in theirs))
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ours.ranks.tolist() == theirs.ranks.tolist()
    assert ours.top_tokens.shape == theirs.top_tokens.shape
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.top_logprobs, theirs.top_logprobs, rtol=1e-5, atol=1e-5)
    own = logits[rows][some]
    assert torch.equal(own.gather(1, ours.top_tokens), own.gather(1, theirs.top_tokens))
    assert all(len(set(top)) == len(top) for top in ours.top_tokens.tolist())


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
    allowed_token_ids=st.sampled_from(
        [None, (5,), (0, 3, 31, 32, 64), tuple(range(192)), tuple(n for n in range(4100) if n % 7 and n // 64 % 3)]
    ),
)
asked_of_a_batch = st.lists(some_params, min_size=1, max_size=4)
seen_tokens = st.lists(st.integers(0, 300), max_size=20)
