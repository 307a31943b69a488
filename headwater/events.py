"""KV-cache events: an engine's account of which blocks of which tokens it holds, as it stores and drops them.

Published over ZMQ, three frames a message: topic, sequence number (8 bytes, big endian), and a msgpack batch
`[timestamp, [event, ...], data-parallel rank]`. Our engine writes the format of vLLM 0.32, whose events are maps with
the key `type`, so that whoever follows vLLM can follow it. The decoder also takes what older vLLM and SGLang write:
positional arrays, the tag first, of which the last fields may be missing. Block hashes, int or bytes, mean nothing
outside the engine that made them: what a block holds is said by its token ids.

Nobody knows who writes to a port. So the decoder has limits, far above what engines write, and reads a batch event by
event: no message takes long in one stretch, or becomes many times its size.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

MOST_BYTES: Final = 4 << 20
"""Of a payload."""
MOST_EVENTS: Final = 65_536
MOST_TOKENS: Final = 262_144
"""Of one event; also its most blocks, as a block may be one token."""
_MOST_BLOCK_TOKENS: Final = 16_384
_MOST_EXTRA_BYTES: Final = 512 << 10
_MOST_RANKS: Final = 1024
_MOST_GROUPS: Final = 1024

BlockHash = int | Annotated[bytes, Meta(max_length=64)]
BlockHashes = Annotated[list[BlockHash], Meta(max_length=MOST_TOKENS)]
TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Name = Annotated[str, Meta(max_length=512)]
Group = Annotated[int, Meta(ge=0, lt=_MOST_GROUPS)]


class EventDecodeError(ValueError):
    """What arrived is no batch of KV events; the message says where it goes wrong."""


class BlockStored(Struct, tag=True, omit_defaults=True):
    """Consecutive blocks of one prompt are in the cache now."""

    block_hashes: BlockHashes
    parent_block_hash: BlockHash | None
    """The block before the first of these; None at the beginning of a prompt."""
    token_ids: Annotated[list[TokenId], Meta(max_length=MOST_TOKENS)]
    """Of all these blocks, `block_size` each."""
    block_size: Annotated[int, Meta(ge=1, le=_MOST_BLOCK_TOKENS)]
    lora_id: int | None
    medium: Name | None
    """Where the blocks lie, as in "GPU" or "CPU"."""
    lora_name: Name | None
    extra_keys: list[Any] | None = None
    """For each block what enters its hash beside its tokens, such as the cache salt; or None."""
    group_idx: Group | None = None
    """Which of the model's KV caches, where layers of different kinds have different ones."""
    kv_cache_spec_kind: Name | None = None
    cache_salt: Name | None = None
    """Of the prompt, in each of its events: SGLang's way. vLLM has it among the extra keys of the first block."""


class BlockRemoved(Struct, tag=True, omit_defaults=True):
    """These blocks are no longer in the cache."""

    block_hashes: BlockHashes
    medium: Name | None
    group_idx: Group | None = None


class AllBlocksCleared(Struct, tag=True, omit_defaults=True):
    """The cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(Struct, array_like=True):
    """What one engine step changed."""

    ts: float
    """Seconds since the epoch."""
    events: list[Event]
    dp_rank: int = 0
    """Data-parallel rank of the publisher; each has a cache of its own."""


class Frames(NamedTuple):
    """One message on the wire."""

    topic: bytes
    seq: int
    """Counts up by one; a step of more is a loss. -1 ends a replay."""
    payload: bytes


class Received(NamedTuple):
    """A batch as it came."""

    ts: float
    dp_rank: int
    events: Iterator[Event | None]
    """Read as they are taken; None for one of a type that is unknown here. Raises EventDecodeError."""


class _Batch(Struct, array_like=True):
    ts: float
    events: Annotated[list[Raw], Meta(max_length=MOST_EVENTS)]
    dp_rank: Annotated[int, Meta(ge=0, lt=_MOST_RANKS)] | None = None


class _TaggedMap(Struct):
    type: str


class _TaggedArray(Struct, array_like=True):
    type: str


_OPTIONAL: Final = frozenset(("parent_block_hash", "lora_id", "medium", "lora_name"))
"""Fields that vLLM always writes, and that older and other publishers may leave out."""
_MAPS_ONLY: Final = frozenset(("cache_salt",))
"""Fields that no server has written in arrays."""
_ARRAYS: Final = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
"""First bytes of arrays in msgpack."""
_NULL: Final = Raw(msgspec.msgpack.encode(None))

_encoder: Final = msgspec.msgpack.Encoder()
_batch: Final = msgspec.msgpack.Decoder(_Batch)
_tagged_map: Final = msgspec.msgpack.Decoder(_TaggedMap)
_tagged_array: Final = msgspec.msgpack.Decoder(_TaggedArray)
_extra_keys: Final[msgspec.msgpack.Decoder[list[Any] | None]] = msgspec.msgpack.Decoder(list[Any] | None)


def _reader(event: type[Event], *, positional: bool) -> "msgspec.msgpack.Decoder[Any]":
    """For an event as anybody writes it: more fields may be missing, and the extra keys, which may be anything, are
    left in their bytes."""
    fields = [field for field in msgspec.structs.fields(event) if not (positional and field.name in _MAPS_ONLY)]
    needed = [field.name for field in fields if field.required and field.name not in _OPTIONAL]
    if positional and needed:
        names = [field.name for field in fields]
        needed = names[: names.index(needed[-1]) + 1]
    shape: list[Any] = [("type", str)] if positional else []
    for field in fields:
        if field.name == "extra_keys":
            shape.append((field.name, Raw, _NULL))
        else:
            shape.append((field.name, field.type) if field.name in needed else (field.name, field.type, None))
    return msgspec.msgpack.Decoder(
        msgspec.defstruct(event.__name__, shape, array_like=positional, kw_only=not positional)
    )


_READERS: Final = {
    (event.__name__, positional): (event, _reader(event, positional=positional))
    for event in (BlockStored, BlockRemoved, AllBlocksCleared)
    for positional in (False, True)
}


def encode(batch: EventBatch) -> bytes:
    """The payload of a message, as vLLM 0.32 writes it."""
    return _encoder.encode(batch)


def decode(payload: bytes) -> Received:
    """Read a payload of our engine, vLLM or SGLang. Raises EventDecodeError, also later, as the events are taken."""
    if len(payload) > MOST_BYTES:
        raise EventDecodeError(f"KV events of {len(payload)} bytes, of which at most {MOST_BYTES} are read")
    try:
        batch = _batch.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EventDecodeError(f"KV events are not [timestamp, [events], rank] in msgpack: {error}") from None
    return Received(batch.ts, batch.dp_rank or 0, map(_event, batch.events))


def _event(raw: Raw) -> Event | None:
    data = memoryview(raw)
    positional = data[0] in _ARRAYS
    try:
        tag = (_tagged_array if positional else _tagged_map).decode(data).type
    except (msgspec.MsgspecError, ValueError, RecursionError):
        start = bytes(data[:40])
        raise EventDecodeError(
            f"a KV event is neither a map with a `type` nor an array with a tag: {start!r}"
        ) from None
    if (tag, positional) not in _READERS:
        return None
    event, reader = _READERS[tag, positional]
    try:
        fields = msgspec.structs.asdict(reader.decode(data))
        fields.pop("type", None)
        if "extra_keys" in fields:
            fields["extra_keys"] = _read_extra_keys(fields["extra_keys"])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EventDecodeError(f"KV event {tag}: {error}") from None
    return event(**fields)


def _read_extra_keys(raw: Raw) -> list[Any] | None:
    data = memoryview(raw)
    if len(data) > _MOST_EXTRA_BYTES:
        raise ValueError(f"{len(data)} bytes of extra keys, of which at most {_MOST_EXTRA_BYTES} are read")
    return _extra_keys.decode(data)


def to_frames(topic: bytes, seq: int, payload: bytes) -> list[bytes]:
    return [topic, seq.to_bytes(8, "big", signed=True), payload]


def from_frames(frames: Sequence[bytes]) -> Frames:
    """Take a message apart. Raises EventDecodeError."""
    match frames:
        case [topic, seq, payload] if len(seq) == 8:
            return Frames(topic, int.from_bytes(seq, "big", signed=True), payload)
        case _:
            lengths = [len(frame) for frame in frames]
            raise EventDecodeError(
                f"a message of KV events is topic, 8 bytes, payload; found frames of {lengths} bytes"
            )
