"""The prefix cache by itself: what is reused, what is evicted, what is told to listeners."""

import pytest

from headwater_engine.cache.block_pool import BlockPool
from headwater_engine.cache.prefix_cache import Lease, PrefixCache

SIZE = 4


def tokens(*blocks: int, tail: int = 0) -> list[int]:
    """A block of four equal tokens for each argument, and `tail` zeros."""
    return [block for block in blocks for _ in range(SIZE)] + [0] * tail


def grown(cache: PrefixCache, prompt: list[int], salt: str = "") -> Lease:
    """A lease with room for all of the prompt, which it offers nothing of yet."""
    lease = cache.open(prompt, salt)
    assert cache.grow(lease, len(prompt))
    return lease


def run(cache: PrefixCache, prompt: list[int], salt: str = "", step: int = 0) -> Lease:
    """A lease whose tokens are all computed."""
    lease = grown(cache, prompt, salt)
    cache.commit(lease, prompt, len(prompt), step)
    return lease


def cached_blocks(cache: PrefixCache, prompt: list[int], salt: str = "") -> int:
    lease = cache.open(prompt, salt)
    count = lease.committed
    cache.close(lease)
    return count


def test_a_finished_request_is_found_by_its_prefix() -> None:
    cache = PrefixCache(10, SIZE)
    cache.close(run(cache, tokens(1, 2, 3)))
    assert cached_blocks(cache, tokens(1, 2, 9, tail=1)) == 2
    assert cached_blocks(cache, tokens(9, 1, 2, tail=1)) == 0
    cache.check([])


def test_the_last_token_is_always_left_to_compute() -> None:
    cache = PrefixCache(10, SIZE)
    cache.close(run(cache, tokens(1, 2)))
    assert cached_blocks(cache, tokens(1, 2)) == 1
    assert cached_blocks(cache, tokens(1, 2, tail=1)) == 2


def test_running_requests_share_blocks() -> None:
    cache = PrefixCache(10, SIZE)
    first = run(cache, tokens(1, 2, tail=1))
    second = cache.open(tokens(1, 2, 3))
    assert second.table == first.table[:2]
    cache.close(first)
    cache.check([second])
    assert cache.cached == 0, "the second still holds what the first left"


def test_salts_share_nothing() -> None:
    cache = PrefixCache(10, SIZE)
    cache.close(run(cache, tokens(1, 2, tail=1), salt="a"))
    assert cached_blocks(cache, tokens(1, 2, tail=1), salt="b") == 0
    assert cached_blocks(cache, tokens(1, 2, tail=1), salt="a") == 2


def test_a_salt_that_left_no_block_leaves_no_trace() -> None:
    cache = PrefixCache(10, SIZE)
    for n in range(1000):
        cache.close(run(cache, [1], salt=f"tenant {n}"))
    assert len(cache._tree._roots) == 0


def test_the_same_blocks_computed_twice_are_kept_once() -> None:
    cache = PrefixCache(10, SIZE)
    prompt = tokens(1, 2, tail=1)
    first, second = grown(cache, prompt), grown(cache, prompt)
    cache.commit(first, prompt, len(prompt), 0)
    cache.commit(second, prompt, len(prompt), 0)
    cache.check([first, second])
    assert set(first.table).isdisjoint(second.table)
    cache.close(first)
    cache.close(second)
    cache.check([])
    assert cache.cached == 2


def test_leaves_go_first_and_the_longest_unused_before_others() -> None:
    cache = PrefixCache(4, SIZE)
    cache.close(run(cache, tokens(1, 2)))
    cache.close(run(cache, tokens(1, 3)))
    cached_blocks(cache, tokens(1, 2, tail=1))  # 1-2 is used again, so 1-3 is the oldest
    lease = run(cache, tokens(7, 8))
    assert cached_blocks(cache, tokens(1, 3, tail=1)) == 1
    assert cached_blocks(cache, tokens(1, 2, tail=1)) == 2
    cache.close(lease)
    cache.check([])


def test_growing_beyond_what_is_evictable_changes_nothing() -> None:
    cache = PrefixCache(4, SIZE)
    held = run(cache, tokens(1, 2))
    lease = cache.open(tokens(5, 6, 7))
    assert not cache.grow(lease, 3 * SIZE)
    assert lease.table == []
    cache.check([held, lease])
    assert cache.grow(lease, 2 * SIZE)


def test_what_a_failed_step_was_to_compute_is_offered_no_more() -> None:
    cache = PrefixCache(10, SIZE)
    cache.close(run(cache, tokens(1, 2), step=1))
    held = run(cache, tokens(1, 3, 4), step=2)
    cache.close(run(cache, tokens(1, 2, 5), step=2))
    before = list(held.table)
    cache.revoke(2, [held])
    cache.check([held])
    assert held.table == before, "its blocks stay its own"
    assert cached_blocks(cache, tokens(1, 3, tail=1)) == 1
    assert cached_blocks(cache, tokens(1, 2, 5, tail=1)) == 2, "an earlier step's stay"
    cache.commit(held, tokens(1, 3, 4), 3 * SIZE, 3)
    assert cached_blocks(cache, tokens(1, 3, 4, tail=1)) == 3
    cache.close(held)
    cache.check([])


def test_a_copy_that_walked_along_a_failed_steps_path_is_its_own_again() -> None:
    cache = PrefixCache(10, SIZE)
    prompt = tokens(1, 2, 3, tail=1)
    first, second, third = (cache.open(prompt) for _ in range(3))
    for lease in (first, second, third):
        assert cache.grow(lease, len(prompt) - (lease is not second) * SIZE)
    cache.commit(first, prompt, SIZE, 1)
    cache.commit(second, prompt, 3 * SIZE, 2)
    cache.commit(third, prompt, 2 * SIZE, 2)
    cache.revoke(2, [first, second, third])
    cache.check([first, second, third])
    assert [lease.committed for lease in (first, second, third)] == [1, 1, 1]
    assert cached_blocks(cache, prompt) == 1
    for lease in (third, second, first):
        cache.close(lease)
    cache.check([])
    assert cache.cached == 1


def test_a_block_behind_one_of_a_later_step_goes_with_it() -> None:
    """Its own step ran well; but nothing finds it without the one before it."""
    cache = PrefixCache(10, SIZE)
    prompt = tokens(1, 2, tail=1)
    early, late = grown(cache, prompt), grown(cache, prompt)
    cache.commit(late, prompt, SIZE, 2)
    cache.commit(early, prompt, 2 * SIZE, 1)
    cache.revoke(2, [early, late])
    cache.check([early, late])
    assert cached_blocks(cache, prompt) == 0


def test_without_reuse_nothing_is_found() -> None:
    cache = PrefixCache(10, SIZE, reuse=False)
    cache.close(run(cache, tokens(1, 2)))
    assert cached_blocks(cache, tokens(1, 2, tail=1)) == 0
    assert cache.available == cache.total


def test_giving_a_free_block_back_is_an_error() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.give_back(block)
    with pytest.raises(ValueError, match="free already"):
        pool.give_back(block)
