"""KV-cache events: an engine's account of which blocks of which tokens it holds, as it stores and drops them.

Published over ZMQ, three frames a message: topic, sequence number (8 bytes, big endian), and a msgpack batch
`[timestamp, [event, ...], data-parallel rank]`. Our engine writes the format of vLLM 0.32, whose events are maps with
the key `type`, so that whoever follows vLLM can follow it. The decoder also takes what older vLLM and SGLang write:
positional arrays, the tag first, of which the last fields may be missing. Block hashes, int or bytes, mean nothing
outside the engine that made them: what a block holds is said by its token ids.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

BlockHash = int | bytes
TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class EventDecodeError(ValueError):
    """What arrived is no batch of KV events; the message says where it goes wrong."""


class BlockStored(Struct, tag=True, omit_defaults=True):
    """Consecutive blocks of one prompt are in the cache now."""

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    """The block before the first of these; None at the beginning of a prompt."""
    token_ids: list[TokenId]
    """Of all these blocks, `block_size` each."""
    block_size: Annotated[int, Meta(ge=1)]
    lora_id: int | None
    medium: str | None
    """Where the blocks lie, as in "GPU" or "CPU"."""
    lora_name: str | None
    extra_keys: list[Any] | None = None
    """For each block what enters its hash beside its tokens, such as the cache salt; or None."""
    group_idx: int | None = None
    """Which of the model's KV caches, where layers of different kinds have different ones."""
    kv_cache_spec_kind: str | None = None


class BlockRemoved(Struct, tag=True, omit_defaults=True):
    """These blocks are no longer in the cache."""

    block_hashes: list[BlockHash]
    medium: str | None
    group_idx: int | None = None


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


_EVENTS: Final[dict[str, type[Event]]] = {each.__name__: each for each in (BlockStored, BlockRemoved, AllBlocksCleared)}
_OPTIONAL: Final[dict[str, None]] = dict.fromkeys(("parent_block_hash", "lora_id", "medium", "lora_name"))
"""Fields that vLLM always writes, and that older and other publishers may leave out."""

_encoder: Final = msgspec.msgpack.Encoder()


def encode(batch: EventBatch) -> bytes:
    """The payload of a message, as vLLM 0.32 writes it."""
    return _encoder.encode(batch)


def decode(payload: bytes) -> EventBatch:
    """Read a payload of our engine, vLLM or SGLang; events of unknown type are left out. Raises EventDecodeError."""
    try:
        batch = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise EventDecodeError(f"KV events are not msgpack: {error}") from None
    match batch:
        case [int() | float() as ts, list() as events, *rest]:
            rank = rest[0] if rest else None
        case _:
            raise EventDecodeError(f"KV events are not [timestamp, [events], rank]: {_cut(batch)}")
    if not isinstance(rank, int | None):
        raise EventDecodeError(f"the data-parallel rank of KV events is no integer: {_cut(rank)}")
    return EventBatch(float(ts), [event for raw in events if (event := _event(raw)) is not None], rank or 0)


def _event(raw: Any) -> Event | None:
    match raw:
        case {"type": str() as tag}:
            fields = raw
        case [str() as tag, *values]:
            names = _EVENTS[tag].__struct_fields__ if tag in _EVENTS else ()
            fields = dict(zip(names, values, strict=False))
        case _:
            raise EventDecodeError(f"a KV event is neither a map with a `type` nor an array with a tag: {_cut(raw)}")
    if tag not in _EVENTS:
        return None
    try:
        return msgspec.convert({**_OPTIONAL, **fields, "type": tag}, _EVENTS[tag], builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise EventDecodeError(f"KV event {tag}: {error}") from None


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
