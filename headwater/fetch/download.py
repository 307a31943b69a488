"""A file from its source into its part: on from the byte, several ranges of a large one, anew where it changed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headwater.fetch.errors import DamagedError, DifferentError, FetchError, TransientError
from headwater.fetch.growing import Growing
from headwater.fetch.patience import Lines
from headwater.fetch.promise import Promise
from headwater.fetch.transport import Answer, Content

PIECE: Final = 16 * 1024 * 1024
"""Bytes of a range: they wait in memory until those before them are in the file."""
_MOST_ANEW: Final = 3
"""Times that answers may contradict what is known of a file."""
_CHUNK: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class File:
    name: str
    """Within the folder."""
    promise: Promise
    content: Content


class Download:
    """`room`: of pieces in memory, for all files together. `came`: bytes more, or less, that are in the part."""

    def __init__(
        self, file: File, growing: Growing, lines: Lines, room: asyncio.Semaphore, came: Callable[[int], None]
    ) -> None:
        self._file = file
        self._growing = growing
        self._lines = lines
        self._room = room
        self._came = came
        self._size = file.promise.size
        self._validator: str | None = None
        self._in_ranges = True
        self._anew = 0
        self._most = growing.size
        """Bytes that there were once: more is progress, the same once more is none."""

    async def run(self) -> str:
        """The SHA-256 of the file, which is whole and on the disk then. Raises FetchError, OSError."""
        try:
            return await self._once()
        except DamagedError:
            # The line, the disk, or what an earlier run left: not twice, if the source is as it says.
            self._begin_anew()
            return await self._once()

    async def _once(self) -> str:
        whole = False
        while not whole:
            left = None if self._size is None else self._size - self._growing.size
            if left is not None and left > PIECE and self._in_ranges:
                whole = await self._take_ranges(self._size or 0)
            elif left != 0 or not self._size:
                whole = await self._lines.patiently(self._stream)
            else:
                whole = True
        had = self._growing.size
        try:
            return await self._growing.finish(self._file.name)
        except DamagedError:
            self._came(-had)
            raise

    # In one answer

    async def _stream(self) -> bool:
        """What is left, in one request. Raises TransientError, with what came kept."""
        try:
            async with self._file.content.open(self._growing.size, None, self._validator) as answer:
                self._compare(answer)
                if answer.start != self._growing.size:
                    self._begin_anew()
                    self._compare(answer)
                await self._append(answer)
        except DifferentError as error:
            self._begin_anew()
            self._anew += 1
            if self._anew == _MOST_ANEW:
                raise FetchError(f"{error}, each time anew") from None
            raise TransientError(str(error)) from None
        if self._size is not None and self._growing.size < self._size:
            came = self._growing.size
            raise TransientError(f"{self._file.name}: {came} bytes came, not {self._size}")
        return True

    async def _append(self, answer: Answer) -> None:
        while data := await answer.read(_CHUNK):
            await self._add(data)

    async def _add(self, data: list[bytes]) -> None:
        size = sum(map(len, data))
        if self._size is not None and self._growing.size + size > self._size:
            raise DifferentError(f"{self._file.name}: more than {self._size} bytes came")
        await self._growing.append(data)
        self._came(size)
        if self._growing.size > self._most:
            self._most = self._growing.size
            self._lines.progressed()

    # In ranges

    async def _take_ranges(self, size: int) -> bool:
        """Several at once, put down in their order. False: the server has none, or another file by now."""
        pieces: asyncio.Queue[asyncio.Task[list[bytes]] | None] = asyncio.Queue()
        asking = asyncio.create_task(self._ask_for_ranges(size, pieces))
        try:
            while (piece := await pieces.get()) is not None:
                try:
                    data = await piece
                finally:
                    self._room.release()
                await self._add(data)
        except DifferentError:
            self._begin_anew()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await self._drop(pieces)
        return self._growing.size == size

    async def _ask_for_ranges(self, size: int, pieces: "asyncio.Queue[asyncio.Task[list[bytes]] | None]") -> None:
        """The first by itself: it shows whether the server has ranges."""
        first = self._growing.size
        for start in range(first, size, PIECE):
            await self._room.acquire()
            task = asyncio.create_task(self._piece(start, min(start + PIECE, size)))
            pieces.put_nowait(task)
            if start == first:
                await asyncio.wait([task])
        pieces.put_nowait(None)

    async def _drop(self, pieces: "asyncio.Queue[asyncio.Task[list[bytes]] | None]") -> None:
        while not pieces.empty():
            if (piece := pieces.get_nowait()) is not None:
                piece.cancel()
                await asyncio.gather(piece, return_exceptions=True)
                self._room.release()

    async def _piece(self, start: int, stop: int) -> list[bytes]:
        data: list[bytes] = []
        at = start

        async def ask() -> None:
            nonlocal at
            async with self._file.content.open(at, stop, self._validator) as answer:
                self._compare(answer)
                if not answer.partial:
                    raise DifferentError(f"{self._file.name}: all of it came where a range was asked for")
                while came := await answer.read(PIECE):
                    data.extend(came)
                    at += sum(map(len, came))
                    if at > stop:
                        raise DifferentError(f"{self._file.name}: more came than the range that was asked for")
                    self._lines.progressed()
            if at < stop:
                raise TransientError(f"{self._file.name}: a range ended at byte {at}, not at {stop}")

        await self._lines.patiently(ask)
        return data

    # Both

    def _compare(self, answer: Answer) -> None:
        """With what is known of the file. Raises DifferentError."""
        name = self._file.name
        if answer.size is not None and self._size not in (None, answer.size):
            raise DifferentError(f"{name} has {answer.size} bytes, and should have {self._size}")
        if answer.validator is not None and self._validator not in (None, answer.validator):
            raise DifferentError(f"{name} was changed while it was fetched")
        self._size = self._size if answer.size is None else answer.size
        self._validator = self._validator or answer.validator

    def _begin_anew(self) -> None:
        """In one answer, so that nothing of two can be mixed."""
        self._came(-self._growing.size)
        self._growing.begin_anew()
        self._validator, self._in_ranges = None, False
