"""KV events are written as vLLM 0.32 writes them, and read from all who publish them."""

import contextlib
import json
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.events import (
    MOST_BYTES,
    MOST_EVENTS,
    MOST_TOKENS,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    EventDecodeError,
    decode,
    encode,
    from_frames,
    to_frames,
)

RECORDED = Path(__file__).parent.parent / "fixtures" / "vllm-0.32.0"


def recorded_messages() -> list[list[bytes]]:
    """kv-events.bin: for each message the number of frames, then frames behind their lengths; 32 bits big endian."""
    data = (RECORDED / "kv-events.bin").read_bytes()
    messages, at = [], 0

    def number() -> int:
        nonlocal at
        at += 4
        return struct.unpack_from(">I", data, at - 4)[0]

    while at < len(data):
        frames = []
        for _ in range(number()):
            length = number()
            frames.append(data[at : at + length])
            at += length
        messages.append(frames)
    return messages


hashes = st.one_of(st.integers(-(2**63), 2**64 - 1), st.binary(max_size=32))
optional_int = st.none() | st.integers(0, 100)
optional_text = st.none() | st.text(max_size=5)
stored = st.builds(
    BlockStored,
    block_hashes=st.lists(hashes, max_size=3),
    parent_block_hash=st.none() | hashes,
    token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=40),
    block_size=st.integers(1, 128),
    lora_id=optional_int,
    medium=optional_text,
    lora_name=optional_text,
    extra_keys=st.none() | st.lists(st.none() | st.lists(st.text(max_size=3), max_size=2), max_size=3),
    group_idx=optional_int,
    kv_cache_spec_kind=optional_text,
)
removed = st.builds(
    BlockRemoved, block_hashes=st.lists(hashes, max_size=3), medium=optional_text, group_idx=optional_int
)
batches = st.builds(
    EventBatch,
    ts=st.floats(allow_nan=False),
    events=st.lists(st.one_of(stored, removed, st.builds(AllBlocksCleared)), max_size=4),
    dp_rank=st.integers(0, 7),
)


def whole(payload: bytes) -> EventBatch:
    """All of a batch, without what is unknown."""
    batch = decode(payload)
    return EventBatch(batch.ts, [event for event in batch.events if event is not None], batch.dp_rank)


def test_recorded_batches_of_vllm_are_read():
    lines = [json.loads(line) for line in (RECORDED / "kv-events.jsonl").read_text().splitlines()]
    messages = recorded_messages()
    assert len(messages) == len(lines) > 0
    for frames, line in zip(messages, lines, strict=True):
        topic, seq, payload = from_frames(frames)
        batch = whole(payload)
        assert (topic.decode(), seq) == (line["topic"], line["seq"])
        ts, events, rank = line["batch"]
        assert (batch.ts, batch.dp_rank) == (ts, rank)
        assert msgspec.to_builtins(batch.events) == events


def test_batches_are_written_byte_for_byte_as_vllm_writes_them():
    for frames in recorded_messages():
        topic, seq, payload = from_frames(frames)
        assert to_frames(topic, seq, encode(whole(payload))) == frames


@given(batches)
def test_what_is_written_is_read_again(batch):
    assert whole(encode(batch)) == batch


STORED = BlockStored([11, 12], 10, [1, 2, 3, 4], 2, 5, "GPU", "sql", [["salt"], None], 0)
ARRAY = ["BlockStored", [11, 12], 10, [1, 2, 3, 4], 2, 5, "GPU", "sql", [["salt"], None], 0]


def read(*events: object, tail: tuple = (0,)) -> list:
    return whole(msgspec.msgpack.encode([1.5, events, *tail])).events


@pytest.mark.parametrize("length", range(5, len(ARRAY) + 1))
def test_positional_arrays_are_read_at_every_length_that_was_ever_written(length):
    (event,) = read(ARRAY[:length])
    for position, name in enumerate(BlockStored.__struct_fields__[: len(ARRAY) - 1], start=1):
        assert getattr(event, name) == (getattr(STORED, name) if position < length else None)


def test_sglang_batches_are_read():
    """Positional, signed hashes, no rank unless attention is data-parallel."""
    events = read(
        ["BlockStored", [-7], None, [1, 2], 2, None], ["BlockRemoved", [-7]], ["AllBlocksCleared"], tail=(None,)
    )
    assert events == [
        BlockStored([-7], None, [1, 2], 2, None, None, None),
        BlockRemoved([-7], None),
        AllBlocksCleared(),
    ]


def test_hashes_may_be_bytes():
    (event,) = read({"type": "BlockStored", **msgspec.structs.asdict(STORED), "block_hashes": [b"\x01" * 32, b"\x02"]})
    assert event.block_hashes == [b"\x01" * 32, b"\x02"]


def test_a_batch_without_a_rank_is_of_rank_0():
    assert whole(msgspec.msgpack.encode([1, []])) == EventBatch(1.0, [], 0)


def test_unknown_events_and_unknown_fields_are_passed_over():
    newer = {"type": "BlockRemoved", "block_hashes": [1], "medium": None, "colour": "red"}
    assert read({"type": "BlockMoved", "from": 1}, ["BlockMoved", 2], newer, [*ARRAY, "kind", "more"]) == [
        BlockRemoved([1], None),
        msgspec.structs.replace(STORED, kv_cache_spec_kind="kind"),
    ]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "BlockStored"}, "block_hashes"),
        (["BlockStored", [1], None, [1, 2]], "at least length 5"),
        ({"type": "BlockRemoved", "block_hashes": ["x"]}, r"block_hashes\[0\]"),
        (["BlockStored", [1], None, [-1], 1], r"\[3\]\[0\]"),
        (["BlockStored", [1], None, [1], 0], r"\[4\]"),
        (["BlockStored", [b"x" * 65], None, [1], 1], "length <= 64"),
        (["BlockStored", [1], None, [1], 1, None, "m" * 513], "length <= 512"),
        (["BlockStored", [1], None, [1], 1, None, None, None, None, 1024], "<= 1023"),
        (["BlockStored", [1], None, [1], 1, None, None, None, ["x" * 600_000]], "extra keys"),
        (["BlockStored", [1], None, [0] * (MOST_TOKENS + 1), 1], "length <= 262144"),
        (["BlockRemoved", [0] * (MOST_TOKENS + 1)], "length <= 262144"),
        (7, "neither a map"),
        ([], "neither a map"),
        ({"kind": "BlockStored"}, "neither a map"),
    ],
)
def test_a_malformed_event_is_refused_with_its_place(event, message):
    with pytest.raises(EventDecodeError, match=message):
        read(event)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"a": 1}),
        msgspec.msgpack.encode([1, [], "x"]),
        msgspec.msgpack.encode([1, [], 1024]),
        msgspec.msgpack.encode([1, [], -1]),
        msgspec.msgpack.encode([1, [0] * (MOST_EVENTS + 1)]),
        msgspec.msgpack.encode([1, [b"x" * MOST_BYTES]]),
    ],
)
def test_what_is_no_batch_is_refused(payload):
    with pytest.raises(EventDecodeError):
        whole(payload)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_a_decode_error(payload):
    with contextlib.suppress(EventDecodeError):
        whole(payload)


@given(batches, st.integers(0, 10_000), st.binary(max_size=3))
def test_damaged_batches_raise_nothing_but_a_decode_error(batch, at, damage):
    payload = encode(batch)
    at %= len(payload)
    with contextlib.suppress(EventDecodeError):
        whole(payload[:at] + damage + payload[at + len(damage) :])


def test_nesting_without_end_is_refused():
    with pytest.raises(EventDecodeError):
        whole(b"\x91" * 100_000)


@given(st.binary(max_size=5), st.integers(-1, 2**63 - 1), st.binary(max_size=5))
def test_frames_round_trip(topic, seq, payload):
    assert from_frames(to_frames(topic, seq, payload)) == (topic, seq, payload)


@pytest.mark.parametrize("frames", [[], [b"", b"\0" * 8], [b"", b"\0" * 4, b""], [b"", b"\0" * 8, b"", b""]])
def test_other_frames_are_refused(frames):
    with pytest.raises(EventDecodeError, match="frames of"):
        from_frames(frames)
