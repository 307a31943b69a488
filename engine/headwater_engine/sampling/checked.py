"""Tokens that are drawn as if all might come, looked at, and drawn again where they must not.

A mask costs more than to ask whether one token may come. What wins among all tokens wins among any of them that it is
one of, so an answer is the same with a mask and without, to the last token; where filters look at all tokens of a row,
the kernel says whether that holds (`SamplingBatch.unmasked`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from headwater_engine.core.step import Judge
from headwater_engine.kernels.interface import Kernels, SamplingBatch
from headwater_engine.sampling.rows import Numbers, SamplingRows


def draw_again(
    kernels: Kernels,
    rows: SamplingRows,
    logits: Tensor,
    batch: SamplingBatch,
    numbers: Numbers,
    seats: Sequence[int],
    tokens: Tensor,
    judge: Judge,
) -> set[int]:
    """Of `tokens` [R], which were drawn from `logits` [R, V] by `batch`, whose numbers these are, for the first R rows,
    which are those of `seats`: what the judge refuses becomes another one, in place. Returns the seats that give none.

    On a CPU, where the forward pass has left nothing of all this in the caches: each call that is spared shows.
    """
    drawn = dict(zip(seats, tokens.tolist(), strict=False))
    refused, masks = judge.look({seat: drawn[seat] for seat in judge.seats})
    if masks.seats:
        rows.mask(masks.seats, masks.array())
        only = np.array([seats.index(seat) for seat in masks.seats])
        # Penalties and biases are in the logits by now.
        batch = replace(
            batch,
            penalties=None,
            masks=rows.masks(numbers),
            biases=None,
            unmasked=None,
            only=torch.from_numpy(only),
        )
        tokens.numpy()[only] = kernels.sample(logits, batch).numpy()
    return set(refused).difference(masks.seats)
