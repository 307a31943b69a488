"""Tokens that are drawn as if all might come, looked at, and drawn again where they must not.

A mask costs more than to ask whether one token may come. What wins among all tokens wins among any of them that it is
one of, so an answer is the same with a mask and without, to the last token; where filters look at all tokens of a row,
the kernel says whether that holds (`SamplingBatch.unmasked`).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headwater_engine.core.step import Judge
from headwater_engine.kernels.interface import Kernels
from headwater_engine.sampling.rows import Numbers, SamplingRows, numbers_of


def draw_again(
    kernels: Kernels,
    rows: SamplingRows,
    logits: Tensor,
    numbers: Numbers,
    seats: Sequence[int],
    tokens: Tensor,
    judge: Judge,
) -> set[int]:
    """Of `tokens` [R], which were drawn from `logits` [R, V] by `numbers` for the first R rows, which are those of
    `seats`: what the judge refuses becomes another one, in place. Returns the seats that give none.

    On a CPU, and by NumPy, since torch would share copies of a few rows among threads, which costs more than it takes.
    """
    drawn = dict(zip(seats, tokens.tolist(), strict=False))
    refused, masks = judge.look({seat: drawn[seat] for seat in judge.seats})
    if masks.seats:
        rows.mask(masks.seats, masks.array())
        at = [seats.index(seat) for seat in masks.seats]
        again, words = (torch.from_numpy(each) for each in (logits.numpy()[at], numbers.words.numpy().take(at, axis=1)))
        # Penalties and biases are in the logits by now.
        batch = replace(rows.batch(masks.seats, numbers_of(words)), penalties=None, biases=None)
        tokens.numpy()[at] = kernels.sample(again, batch).numpy()
    return set(refused).difference(masks.seats)
