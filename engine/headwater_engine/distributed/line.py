"""What the processes of a group say to one another beside steps: that they live, and why they end.

A line connects a rank with the process that started it, or the first machine with another one. On it go messages of one
line of JSON each. Both ends must expect anything at all from the other: a stranger may have connected.
"""

import asyncio
import contextlib
from enum import IntEnum
from typing import Any, Final

import msgspec

INTERVAL: Final = 0.5
"""Seconds between two beats."""
LONGEST: Final = 64 * 1024
"""Bytes of a message."""


class Cause(IntEnum):
    """What a group may end of. Of several the highest is told: it explains the others."""

    FAILED = 0
    """A rank has raised an error, perhaps since another one is gone."""
    GONE = 1
    """A process or a machine has died, or gives no sign of life."""
    TOLD = 2
    """The first machine says why."""


class Beat(msgspec.Struct, tag="beat"):
    layers: int = 0
    """That the rank has computed since its start."""
    working: bool = False
    """Whether it is within a step."""
    sums: int = 0
    """That it has begun, in steps; of a machine, the most that is known there of any rank."""
    still: bool = False
    """It has done nothing since the last beat, and taken hardly any CPU time; nor does it wait for others in a sum."""


class Loaded(msgspec.Struct, tag="loaded"):
    """The rank has its weights and its KV cache."""


class Failed(msgspec.Struct, tag="failed"):
    """The last word of a rank, or of a machine about one of its ranks."""

    message: str
    cause: Cause = Cause.FAILED


class End(msgspec.Struct, tag="end"):
    """To a rank, or from the first machine to the others: the group is over."""

    message: str
    """Why. Empty: it is meant to end."""


class Hello(msgspec.Struct, tag="hello"):
    """A machine would like to join."""

    version: str
    node: int
    settings: dict[str, Any]
    """Those that must be the same on all machines."""


class Refused(msgspec.Struct, tag="refused"):
    message: str
    for_good: bool
    """False: to try again may help."""


class Start(msgspec.Struct, tag="start"):
    """All are there. The fields are those of a `Meeting`."""

    store: str
    steps: str
    secret: str


Message = Beat | Loaded | Failed | End | Hello | Refused | Start

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


def decode(line: bytes) -> Message | None:
    """None: that is no message."""
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class Line:
    """One end, in a process that runs asyncio."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """`reader` has LONGEST for its limit."""
        self._reader = reader
        self._writer = writer

    async def hear(self) -> Message | None:
        """The next message. None: the other end is gone, or does not speak as we do."""
        try:
            line = await self._reader.readline()
        except (ValueError, OSError):  # longer than the limit; cut off
            return None
        return decode(line) if line.endswith(b"\n") else None

    def say(self, message: Message) -> None:
        """Does not wait: what cannot be sent is noticed by whoever hears."""
        if not self._writer.is_closing():
            self._writer.write(encode(message) + b"\n")

    async def beat(self) -> None:
        """For ever."""
        while True:
            self.say(Beat())
            await asyncio.sleep(INTERVAL)

    async def close(self) -> None:
        """Once all that was said has left, which takes a second at most."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self._writer.drain()
        self._writer.close()
