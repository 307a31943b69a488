"""Prefixes that several running requests share, found in their block tables: where contexts begin alike, so do these.

Attention of a token that decodes reads all keys and values of its context, and does little else. Where 32 requests have
a system prompt of 4,096 tokens in common, that is the same 4,096 tokens 32 times over. Read once for all of them, they
are a product of matrices, as in a prompt (*cascade*: Ye et al., "Cascade Inference", 2024). For the rest of its context
each request is by itself, and the two results are put together by the sums of their weights.

Sorted by their tables, sequences with a common prefix are neighbours:

    A   [ 7  3  8  1 ]
                        3 blocks in common
    B   [ 7  3  8  2 ]                          A, B and C share 2 blocks: saved is 2 x reading 2 blocks
                        2                       A and B share 3:           saved is 1 x reading 3
    C   [ 7  3  5 ]
                        0
    D   [ 4  9 ]

So what a group saves is the area of a rectangle under the numbers in the middle, and the best group is the largest one.
Each sequence is in one group at most. C++ kernels, which cut all contexts at the same places, share more: `plan.h`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwater_engine.kernels.interface import BLOCK_SIZE, SharedPrefixes

GROUPS = 8
"""Of a step at most: what a recorded step launches is fixed, and is launched also where there is less to do."""
WORTH = 2048
"""Tokens that a group must save from being read: about what one more launch in each layer costs."""


class Group(NamedTuple):
    sequences: list[int]
    blocks: int
    """That all of them begin with."""


def find_groups(tables: np.ndarray, contexts: np.ndarray, *, worth: int = WORTH, most: int = GROUPS) -> list[Group]:
    """Of sequences with one token each: block tables [S, blocks], and `contexts` [S] tokens.

    They may share all whole blocks but the one of that token.
    """
    if len(contexts) < 2:
        return []
    order = np.array(sorted(range(len(contexts)), key=[row.tobytes() for row in tables].__getitem__))
    own = (contexts[order] - 1) // BLOCK_SIZE
    same = tables[order[1:]] == tables[order[:-1]]
    alike = np.where(same.all(axis=1), same.shape[1], same.argmin(axis=1))
    common = np.minimum(alike, np.minimum(own[1:], own[:-1])).tolist()
    groups: list[Group] = []
    # No rectangle is larger than the whole area.
    while len(groups) < most and sum(common) * BLOCK_SIZE >= worth:
        first, last, blocks = _largest_rectangle(common)
        if (last - first) * blocks * BLOCK_SIZE < worth:
            break
        groups.append(Group(order[first : last + 1].tolist(), blocks))
        # Neither they nor those beside them are neighbours of one another any more.
        common[max(0, first - 1) : last + 1] = [0] * len(common[max(0, first - 1) : last + 1])
    return groups


def _largest_rectangle(heights: list[int]) -> tuple[int, int, int]:
    """Of the largest rectangle under `heights`: where it begins, where it has ended, and its height."""
    best = (0, 0, 0)
    rising: list[tuple[int, int]] = []  # (from where on, height) of rectangles that go on
    for end, height in enumerate([*heights, 0]):
        start = end
        while rising and rising[-1][1] >= height:
            start, ended = rising.pop()
            best = max(best, (start, end, ended), key=lambda r: (r[1] - r[0]) * r[2])
        rising.append((start, height))
    return best


def as_numbers(groups: list[Group], sequences: int, most: int = GROUPS) -> np.ndarray:
    """The fields of `SharedPrefixes` behind one another, int32, to be moved at once."""
    numbers = np.zeros(size_of(sequences, most), dtype=np.int32)
    members, starts, lengths, skipped = np.split(numbers, _borders(sequences, most))
    end = 0
    for place, group in enumerate(groups):
        begin, end = end, end + len(group.sequences)
        members[begin:end] = group.sequences
        starts[place + 1 :] = end
        lengths[place] = skipped[group.sequences] = group.blocks * BLOCK_SIZE
    return numbers


def size_of(sequences: int, most: int = GROUPS) -> int:
    """Of what `as_numbers` gives."""
    return 2 * sequences + 2 * most + 1


def as_prefixes(numbers: Tensor, sequences: int) -> SharedPrefixes:
    """What `as_numbers` gave, on its device, as views."""
    groups = (len(numbers) - 2 * sequences - 1) // 2
    return SharedPrefixes(*torch.tensor_split(numbers, _borders(sequences, groups)))


def _borders(sequences: int, groups: int) -> list[int]:
    return np.cumsum([sequences, groups + 1, groups]).tolist()
