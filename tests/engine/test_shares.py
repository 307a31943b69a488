"""Every rank has its part, and together they have everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.distributed.shares import share, share_heads
from headwater_engine.errors import LoadError


@given(count=st.integers(1, 100), ranks=st.integers(1, 16))
def test_what_is_shared_is_shared_once_and_fairly(count: int, ranks: int) -> None:
    if count < ranks:
        with pytest.raises(LoadError, match=f"{ranks} ranks are too many"):
            share(count, 0, ranks)
        return
    shares = [share(count, rank, ranks) for rank in range(ranks)]
    assert [place for own in shares for place in range(own.start, own.stop)] == list(range(count))
    assert max(own.size for own in shares) - min(own.size for own in shares) <= 1


@given(keys=st.integers(1, 12), group=st.integers(1, 12), ranks=st.integers(1, 16))
def test_each_query_head_finds_its_key_head_on_its_rank(keys: int, group: int, ranks: int) -> None:
    if -(-ranks // keys) > group:
        with pytest.raises(LoadError, match="too many"):
            for rank in range(ranks):
                share_heads(keys * group, keys, rank, ranks)
        return
    seen = []
    for rank in range(ranks):
        queries, own_keys = share_heads(keys * group, keys, rank, ranks)
        assert own_keys.size >= 1
        assert queries.size % own_keys.size == 0, "kernels group heads evenly"
        for local, head in enumerate(range(queries.start, queries.stop)):
            assert own_keys.start + local // (queries.size // own_keys.size) == head // group
            seen.append(head)
        if ranks > keys:
            assert own_keys.start == rank * keys // ranks
    assert sorted(seen) == list(range(keys * group))


def test_features_of_heads_stay_together() -> None:
    queries, keys = share_heads(9, 3, 1, 2)
    assert (queries.of_heads(64), keys.of_heads(64)) == ((576, 192, 576), (192, 64, 192))
