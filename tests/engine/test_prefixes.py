"""Prefixes that running requests share are found in their block tables."""

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch
from headwater_engine.kernels.prefixes import Group, find_groups
from tests.engine.batches import ragged


class Sharing(NamedTuple):
    """Sequences whose tables begin as much as they like like one another's."""

    contexts: list[int]
    new: list[int]
    likes: list[tuple[int, int]]
    """(of which sequence, how many blocks) each table begins with."""

    def batch(self) -> AttentionBatch:
        batch = ragged(self.contexts, self.new)
        for sequence, (like, blocks) in enumerate(self.likes):
            batch.block_tables[sequence, :blocks] = batch.block_tables[like, :blocks]
        return batch

    def groups(self, worth: int) -> list[Group]:
        batch = self.batch()
        tables, contexts = batch.block_tables[: batch.decodes], self.contexts[: batch.decodes]
        return find_groups(tables.numpy(), np.array(contexts), worth=worth)


@st.composite
def sharing(draw: st.DrawFn, most: int = 6, longest: int = 130, prompts: bool = True) -> Sharing:
    contexts = draw(st.lists(st.integers(1, longest), min_size=1, max_size=most))
    decodes = draw(st.integers(0, len(contexts))) if prompts else len(contexts)
    new = [1 if n < decodes else draw(st.integers(1, min(context, 5))) for n, context in enumerate(contexts)]
    likes = []
    for sequence, context in enumerate(contexts):
        like = draw(st.integers(0, sequence))
        least = min(contexts[like], context) // BLOCK_SIZE
        likes.append((like, draw(st.integers(0, least) | st.just(least))))
    return Sharing(contexts, new, likes)


@given(sharing(most=9, longest=90), st.sampled_from([16, 32, 100]))
def test_groups_are_what_they_say(case: Sharing, worth: int) -> None:
    tables = case.batch().block_tables
    groups = case.groups(worth)
    members = [sequence for group in groups for sequence in group.sequences]
    assert len(members) == len(set(members))
    for group in groups:
        assert (len(group.sequences) - 1) * group.blocks * BLOCK_SIZE >= worth
        for sequence in group.sequences:
            assert torch.equal(tables[sequence, : group.blocks], tables[group.sequences[0], : group.blocks])
            assert sequence < case.batch().decodes
            assert group.blocks * BLOCK_SIZE < case.contexts[sequence], "its last token is its own"


@given(sharing(most=9, longest=90))
def test_the_first_group_saves_the_most(case: Sharing) -> None:
    tables, decodes = case.batch().block_tables.tolist(), case.batch().decodes
    best = 0
    for first, blocks in product(range(len(tables)), range(1, 7)):
        alike = [
            s
            for s, table in enumerate(tables)
            if s < decodes and blocks * BLOCK_SIZE < case.contexts[s] and table[:blocks] == tables[first][:blocks]
        ]
        best = max(best, (len(alike) - 1) * blocks)
    groups = case.groups(BLOCK_SIZE)
    assert (len(groups[0].sequences) - 1) * groups[0].blocks == best if groups else best == 0


def test_there_are_no_more_groups_than_a_recorded_step_has_room_for() -> None:
    pairs = Sharing([40] * 40, [1] * 40, [(n // 2 * 2, 2) for n in range(40)])
    assert [len(group.sequences) for group in pairs.groups(16)] == [2] * 8


def test_little_in_common_is_not_worth_a_launch() -> None:
    assert Sharing([2047, 2050], [1, 1], [(0, 0), (0, 127)]).groups(2048) == []
    assert Sharing([2050, 2060], [1, 1], [(0, 0), (0, 128)]).groups(2048) == [Group([0, 1], 128)]
