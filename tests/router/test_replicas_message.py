"""What routers tell one another survives the way; anything else is refused; and what waits for the way stays small."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.gateway.tally import Count
from headwater_router.replicas.message import VERSION, MalformedError, Message, Prefix, decode, encode
from headwater_router.replicas.outbox import Outbox

hashes = st.integers(0, 2**64 - 1)
prefixes = st.builds(Prefix, st.text(max_size=20), st.lists(hashes, max_size=8))
messages = st.builds(Message, st.just(VERSION), st.text(max_size=20), st.lists(prefixes, max_size=5))


@given(message=messages)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    assert decode(encode(message)) == message


@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | hashes | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
            lambda each: st.lists(each, max_size=5) | st.dictionaries(st.text(max_size=5), each, max_size=3),
        ).map(msgspec.msgpack.encode),
        st.builds(lambda message, end: encode(message)[:end], messages, st.integers(0, 60)),
        st.builds(
            lambda message, version: encode(Message(version, *message)), st.tuples(st.text(), st.just([])), hashes
        ),
    )
)
def test_anything_else_is_malformed_or_harmless(data: bytes) -> None:
    try:
        message = decode(data)
    except MalformedError:
        return
    assert message.version == VERSION
    assert all(type(each) is int for prefix in message.prefixes for each in prefix.chain)


def test_another_version_is_not_understood() -> None:
    with pytest.raises(MalformedError, match=f"version {VERSION + 1}"):
        decode(encode(Message(VERSION + 1, "router", [])))


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
