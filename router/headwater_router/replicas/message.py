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

from headwater.prefix import MAX_BLOCKS

MOST_BYTES: Final = 2 << 20
"""Of a message."""
MOST_ITEMS: Final = 8192
_MOST_CHARACTERS: Final = 512
"""Of what a router or an engine is called."""

_PREFIX: Final = "prefix.2"
"""To be changed with what `headwater.prefix` makes of a prompt."""

_Name = Annotated[str, Meta(max_length=_MOST_CHARACTERS)]


class MalformedError(ValueError):
    """It is no message, or an item is not what its kind says."""


class Prefix(msgspec.Struct, array_like=True, frozen=True, tag=_PREFIX):
    """A prompt whose KV an engine has computed."""

    engine: _Name
    """`Endpoint.incarnation`."""
    chain: Annotated[Sequence[Annotated[int, Meta(ge=0)]], Meta(max_length=MAX_BLOCKS)]
    """Of its text: 64-bit hashes, one for each block."""


class Message(NamedTuple):
    router: str
    """Chosen at random by each router when it starts."""
    items: Sequence[Raw]
    """None in a message that only shows that the way through Redis is open."""


class _Kind(msgspec.Struct, array_like=True):
    kind: str


_kind: Final = msgspec.msgpack.Decoder(_Kind)
_prefix: Final = msgspec.msgpack.Decoder(Prefix)
_message: Final = msgspec.msgpack.Decoder(Annotated[list[Raw], Meta(min_length=1, max_length=MOST_ITEMS + 1)])
_name: Final = msgspec.msgpack.Decoder(_Name)
_encode: Final = msgspec.msgpack.Encoder().encode


def encode(router: str, prefixes: Sequence[Prefix]) -> bytes:
    return _encode([router, *prefixes])


def decode(data: bytes) -> Message:
    """Raises MalformedError."""
    if len(data) > MOST_BYTES:
        raise MalformedError(f"{len(data)} bytes, of which at most {MOST_BYTES} are read")
    try:
        router, *items = _message.decode(data)
        return Message(_name.decode(router), items)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from None


def read(item: Raw) -> Prefix | None:
    """An item of a message; None if it is of a kind that is unknown here. Raises MalformedError."""
    try:
        return _prefix.decode(item) if _kind.decode(item).kind == _PREFIX else None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from None
