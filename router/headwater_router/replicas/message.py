"""What one router tells the others, as msgpack: `[router, item, item, ...]`, each item `[kind, ...]`.

An item is read by its kind. Kinds that are unknown, and what a known one has more at its end, are for routers of
another release and are passed over, so routers of several releases share what they have in common. A kind whose meaning
changes gets a new name; so what a newer router says of prompts that it hashes otherwise, no older one believes.

Whoever reaches Redis can send anything, so everything has a limit, and what is above it is not read.
"""

from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw

from headwater.kubernetes import MOST_RANKS
from headwater.prefix import MAX_BLOCKS

MOST_BYTES: Final = 2 << 20
"""Of a message."""
MOST_ITEMS: Final = 8192
_MOST_CHARACTERS: Final = 512
"""Of what a router or an engine is called."""

MOST_ENGINES: Final = 4096
MOST_HELD: Final = 4096
"""Blocks of one `Held`."""

_PREFIX: Final = "prefix.2"
_HELD: Final = "held.2"
"""Both to be changed with what `headwater.prefix` makes of a prompt."""

_Name = Annotated[str, Meta(max_length=_MOST_CHARACTERS)]


class MalformedError(ValueError):
    """It is no message, or an item is not what its kind says."""


_Rank = Annotated[int, Meta(ge=0, lt=MOST_RANKS)] | None
"""The data-parallel engine behind the address (`Target.rank`). None, as older routers have it: all that is there."""


class Prefix(msgspec.Struct, array_like=True, frozen=True, tag=_PREFIX):
    """A prompt whose KV an engine has computed."""

    engine: _Name
    """`Endpoint.incarnation`."""
    chain: Annotated[Sequence[Annotated[int, Meta(ge=0)]], Meta(max_length=MAX_BLOCKS)]
    """Of its text: 64-bit hashes, one for each block."""
    rank: _Rank = None


_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Hash = Annotated[int, Meta(ge=0)]


_Amount = Annotated[float, Meta(ge=0, le=2**53)]


class EngineLoad(msgspec.Struct, array_like=True, frozen=True):
    """What a router has at an engine now. From `work` on it is what its policy knows of the queue (`Backlog`)."""

    engine: _Name
    in_flight: _Count
    queued: _Count
    prefill_tokens: _Count
    prompt_tokens: _Count = 0
    work: _Amount = 0.0
    """0, with requests that are queued: it does not say."""
    head_work: _Amount = 0.0
    head_age: _Amount = 0.0
    """Seconds since the head was sent,"""
    still: _Amount | None = None
    """and since a first token came from there; None: none ever did."""
    computed: _Amount = 0.0
    rank: _Rank = None

    @property
    def name(self) -> "Name":
        return self.engine, self.rank

    def counts(self) -> "Counts":
        """Without what changes while nothing happens."""
        return self.in_flight, self.queued, self.prefill_tokens, self.prompt_tokens


Name = tuple[str, int | None]
"""Of what policies choose among, for all routers: `Endpoint.incarnation`, and `Target.rank`."""
Counts = tuple[int, int, int, int]


class Loads(msgspec.Struct, array_like=True, frozen=True, tag="loads.1"):
    """What a router has at all engines. One that is not named has nothing of it."""

    age: Annotated[float, Meta(ge=0)]
    """Seconds that the router has listened to the others: how much it may know."""
    engines: Annotated[Sequence[EngineLoad], Meta(max_length=MOST_ENGINES)]


class Changes(msgspec.Struct, array_like=True, frozen=True, tag="changes.1"):
    """What a router has at engines where that has changed since it told last."""

    engines: Annotated[Sequence[EngineLoad], Meta(max_length=MOST_ENGINES)]


class Ask(msgspec.Struct, array_like=True, frozen=True, tag="ask.1"):
    """A router that came late asks another one for what it knows."""

    of: _Name


class Held(msgspec.Struct, array_like=True, frozen=True, tag=_HELD):
    """A piece of the answer: blocks of text that an engine should hold, those that were used last first."""

    to: _Name
    engine: _Name
    blocks: Annotated[Sequence[_Hash], Meta(max_length=MOST_HELD)]
    units: Annotated[Sequence[_Count], Meta(max_length=MOST_HELD)]
    """Of each of them, as `headwater.prefix` counts them."""
    rank: _Rank = None


class Took(msgspec.Struct, array_like=True, frozen=True, tag="took.1"):
    """A stretch of time at an engine, from which all learn how fast it and its like are."""

    engine: _Name
    deployment: _Name
    model: _Name
    seconds: _Amount
    stretch: Annotated[Sequence[_Amount], Meta(min_length=5, max_length=5)]
    """`picker.speed.Stretch`, with which the tag is to be changed."""
    rank: _Rank = None


Item = Prefix | Loads | Changes | Ask | Held | Took


class Message(NamedTuple):
    router: str
    """Chosen at random by each router when it starts."""
    items: Sequence[Raw]
    """None in a message that only shows that the way through Redis is open."""


class _Kind(msgspec.Struct, array_like=True):
    kind: str


_kind: Final = msgspec.msgpack.Decoder(_Kind)
_item: Final[msgspec.msgpack.Decoder[Item]] = msgspec.msgpack.Decoder(Item)
_KINDS: Final = frozenset((_PREFIX, _HELD, "loads.1", "changes.1", "ask.1", "took.1"))
_message: Final = msgspec.msgpack.Decoder(Annotated[list[Raw], Meta(min_length=1, max_length=MOST_ITEMS + 1)])
_name: Final = msgspec.msgpack.Decoder(_Name)
_encode: Final = msgspec.msgpack.Encoder().encode


def encode(router: str, items: Sequence[Item]) -> bytes:
    return _encode([router, *items])


def decode(data: bytes) -> Message:
    """Raises MalformedError."""
    if len(data) > MOST_BYTES:
        raise MalformedError(f"{len(data)} bytes, of which at most {MOST_BYTES} are read")
    try:
        router, *items = _message.decode(data)
        return Message(_name.decode(router), items)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from None


def read(item: Raw) -> Item | None:
    """An item of a message; None if it is of a kind that is unknown here. Raises MalformedError."""
    try:
        return _item.decode(item) if _kind.decode(item).kind in _KINDS else None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from None
