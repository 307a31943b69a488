"""Chains of token ids are the same whether they were seen before or not, and what was seen is not hashed again."""

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.prefix import token_chain
from headwater_router.index import chains
from headwater_router.index.chains import KnownChains
from headwater_router.index.folds import KEY_TOKENS

PIECE = 256 * KEY_TOKENS


def conversation(turns: Sequence[tuple[int, int]]) -> "array[int]":
    """Of turns that are the same where their number and their length are."""
    return array("I", [2**32 - 1 - number for number, tokens in turns for _ in range(tokens)])


_turns = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0, 1, KEY_TOKENS, PIECE - 1, PIECE, PIECE + 1])), max_size=4
)


@given(st.lists(st.tuples(st.integers(0, 1), _turns.map(conversation)), max_size=6), st.integers(1, 3))
def test_a_chain_is_that_of_its_ids_whatever_was_asked_for_before(
    prompts: list[tuple[int, "array[int]"]], most: int
) -> None:
    known = KnownChains(most)
    for root, ids in prompts:
        assert known.of(root, ids) == token_chain(root, ids, KEY_TOKENS)
        assert known.of(root, list(ids[:40])) == token_chain(root, ids[:40], KEY_TOKENS)


def test_of_a_further_turn_only_what_is_new_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counted(root: int, ids: Sequence[int], block_size: int) -> list[int]:
        hashed.append(len(ids))
        return token_chain(root, ids, block_size)

    monkeypatch.setattr(chains, "token_chain", counted)
    known = KnownChains(16)
    first = conversation([(0, 9 * PIECE + 100)])
    known.of(1, first)
    assert sum(hashed) == len(first)
    hashed.clear()
    known.of(1, first + conversation([(1, 300)]))
    assert sum(hashed) == 400
    hashed.clear()
    known.of(2, first)
    assert sum(hashed) == len(first), "another root is another prompt"
    for number in range(16):
        known.of(number + 3, first[:PIECE])
    hashed.clear()
    known.of(1, first)
    assert sum(hashed) == len(first), "the longest unused go first"
