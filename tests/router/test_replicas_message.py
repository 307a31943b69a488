"""What routers tell one another survives the way; anything else is refused; and what waits for the way stays small."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.prefix import MAX_BLOCKS, MAX_BYTES, text_chain
from headwater.tally import Count
from headwater_router.replicas.message import (
    MOST_BYTES,
    MOST_ITEMS,
    MalformedError,
    Prefix,
    decode,
    encode,
    read,
)
from headwater_router.replicas.outbox import Outbox

pack = msgspec.msgpack.encode
hashes = st.integers(0, 2**64 - 1)
prefixes = st.builds(Prefix, st.text(max_size=20), st.lists(hashes, max_size=8))


def prefixes_of(data: bytes) -> list[Prefix]:
    """Those that can be read."""
    found = []
    for item in decode(data).items:
        with contextlib.suppress(MalformedError):
            found.append(read(item))
    return [each for each in found if each is not None]


@given(router=st.text(max_size=20), sent=st.lists(prefixes, max_size=5))
def test_a_message_arrives_as_it_was_sent(router: str, sent: list[Prefix]) -> None:
    data = encode(router, sent)
    assert decode(data).router == router
    assert prefixes_of(data) == sent


values = st.recursive(
    st.none() | st.booleans() | hashes | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda each: st.lists(each, max_size=5) | st.dictionaries(st.text(max_size=5), each, max_size=3),
)


@given(
    data=st.one_of(
        st.binary(max_size=60),
        values.map(pack),
        st.lists(st.one_of(values, st.tuples(st.just("prefix.2"), values, values)), max_size=4).map(
            lambda items: pack(["router", *items])
        ),
        st.builds(lambda sent, end: encode("router", sent)[:end], st.lists(prefixes, max_size=5), st.integers(0, 60)),
    )
)
def test_anything_else_is_malformed_or_harmless(data: bytes) -> None:
    try:
        found = prefixes_of(data)
    except MalformedError:
        return
    assert all(type(each) is int and each >= 0 for prefix in found for each in prefix.chain)
    assert all(type(prefix.engine) is str for prefix in found)


def test_of_another_release_only_what_is_unknown_is_passed_over() -> None:
    data = pack(
        ["router", ["load.1", "engine", 3, 4], ["prefix.2", "engine", [1, 2], None, "since then"], ["prefix.3", [3]]]
    )
    assert prefixes_of(data) == [Prefix("engine", [1, 2])]


def test_an_item_that_is_not_what_it_says_spoils_no_other() -> None:
    data = pack(["router", ["prefix.2", "engine", ["x"]], 7, ["prefix.2", "engine", [1]]])
    assert prefixes_of(data) == [Prefix("engine", [1])]
    with pytest.raises(MalformedError):
        read(decode(data).items[0])


@pytest.mark.parametrize(
    "data",
    [
        pack(["r" * 513]),
        pack(["router", *[0] * (MOST_ITEMS + 1)]),
        pack(["router", b"x" * MOST_BYTES]),
        pack([]),
        pack([1, "router", []]),
        b"\x91" * 100_000,
        pack(["router"])[:-1] + b"\x91" * 100_000,
    ],
)
def test_a_message_above_the_limits_is_not_read(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(data)


@pytest.mark.parametrize(
    "item", [["prefix.2", "e" * 513, [1]], ["prefix.2", "e", [0] * (MAX_BLOCKS + 1)], ["prefix.2", "e", [-1]]]
)
def test_an_item_above_the_limits_is_not_read(item: list[object]) -> None:
    with pytest.raises(MalformedError):
        read(decode(pack(["router", item])).items[0])


def test_the_longest_prompt_is_shared() -> None:
    outbox = Outbox(Count())
    outbox.add("engine", text_chain(0, bytes(2 * MAX_BYTES)))
    ((_, chain),) = outbox.take(1)
    assert [len(each.chain) for each in prefixes_of(encode("router", [Prefix("engine", chain)]))] == [MAX_BLOCKS]


@given(
    steps=st.lists(
        st.one_of(st.integers(1, 12).map(lambda n: ("add", n)), st.integers(1, 30).map(lambda n: ("take", n)))
    )
)
def test_the_outbox_keeps_order_and_limit_and_counts_what_it_drops(steps: list[tuple[str, int]]) -> None:
    dropped = Count()
    outbox = Outbox(dropped, most_blocks=20)
    added: list[str] = []
    taken: list[str] = []
    waiting: list[tuple[str, int]] = []
    for number, (step, blocks) in enumerate(steps):
        if step == "add":
            added.append(str(number))
            waiting.append((str(number), blocks))
            outbox.add(str(number), range(blocks))
            while sum(size for _, size in waiting) > 20:
                waiting.pop(0)
        else:
            batch = outbox.take(blocks)
            assert len(batch) <= 1 or sum(len(chain) for _, chain in batch) <= blocks
            assert bool(batch) == bool(waiting)
            assert [name for name, _ in batch] == [name for name, _ in waiting[: len(batch)]]
            del waiting[: len(batch)]
            taken += [name for name, _ in batch]
        assert len(outbox) == len(waiting)
    assert len(added) == len(taken) + len(waiting) + dropped.value
