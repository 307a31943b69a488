"""The constants of a modelled engine from what was measured at a real one: least squares, by relative error, none below
zero."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.fleet.hardware import Hardware


class First(NamedTuple):
    """A request alone."""

    tokens: int
    """Of its prompt, of which nothing was cached."""
    seconds: float
    """To its first token."""


class Gap(NamedTuple):
    """Answers that go on together."""

    answers: int
    context: float
    """Tokens of all of them, prompts included."""
    seconds: float
    """From a token to the next one."""


def fit(base: Hardware, firsts: Sequence[First], gaps: Sequence[Gap]) -> Hardware:
    """`base`, with its costs as measured. Of each kind there must be as many as unknowns, and unlike one another."""
    step, decode, kv = _solve([(1.0, each.answers, each.context) for each in gaps], [each.seconds for each in gaps])
    rows, seconds = [], []
    for each in firsts:
        rows.append((each.tokens, each.tokens**2 / 2))
        seconds.append(each.seconds - step * -(-each.tokens // base.budget))
    prefill, pair = _solve(rows, seconds)
    return replace(base, step=step, decode=decode, kv=kv, prefill=prefill, pair=pair)


def _solve(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """What is negative at first is zero, and the rest without it."""
    wanted = np.array(seconds)
    matrix: npt.NDArray[np.float64] = np.array(rows) / wanted[:, None]
    left, found = list(range(matrix.shape[1])), np.zeros(matrix.shape[1])
    while left:
        # Columns are of very different sizes: pairs of tokens are a million times tokens.
        sizes = np.linalg.norm(matrix[:, left], axis=0)
        solution = np.linalg.lstsq(matrix[:, left] / sizes, np.ones(len(wanted)), rcond=None)[0] / sizes
        if (solution >= 0).all():
            found[left] = solution
            break
        left = [column for column, value in zip(left, solution, strict=True) if value >= 0]
    return [float(each) for each in found]
