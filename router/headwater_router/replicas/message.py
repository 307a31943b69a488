"""What one router tells the others: prompts that engines have answered, as msgpack."""

from collections.abc import Sequence
from typing import Final

import msgspec

VERSION: Final = 2
"""To be raised with the message's shape, and with what `headwater.prefix` makes of a prompt."""


class MalformedError(ValueError):
    """It is no message of this version."""


class Prefix(msgspec.Struct, array_like=True, frozen=True):
    """A prompt whose KV an engine has computed."""

    engine: str
    """`Endpoint.incarnation`."""
    chain: Sequence[int]
    """Of its text: 64-bit hashes, one for each block."""


class Message(msgspec.Struct, array_like=True, frozen=True):
    version: int
    router: str
    """Chosen at random by each router when it starts."""
    prefixes: list[Prefix]
    """None in a message that only shows that the way through Redis is open."""


encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Message).decode


def decode(data: bytes) -> Message:
    """Raises MalformedError."""
    try:
        message = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(str(error)) from None
    if message.version != VERSION:
        raise MalformedError(f"version {message.version}")
    return message
