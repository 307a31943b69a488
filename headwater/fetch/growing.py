"""One file on the way: it grows at its end alone, so that its size is what has come, and is held to its promise."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from headwater.fetch.appending import Appending
from headwater.fetch.errors import DamagedError
from headwater.fetch.promise import Hash, Hashing, Promise

_READ: Final = 4 * 1024 * 1024
_INLINE: Final = 128 * 1024
"""Bytes below which a thread costs more than it saves."""
_FLUSHED: Final = 64 * 1024 * 1024
"""Bytes in the page cache after which the disk is made to begin: else all wait for it at the end."""
_flusher: Final = ThreadPoolExecutor(1, "flush")
"""One for all files: a disk does one thing at a time, and the threads that count digests must not wait for it."""


class Growing:
    """Raises OSError where the disk refuses."""

    def __init__(self, path: Path, promise: Promise) -> None:
        self._promise = promise
        self._hashing = Hashing(promise)
        self._file = Appending(path)
        self._flushing: Future[None] | None = None
        self._flushed = 0
        """Of the bytes in the cache."""

    @property
    def size(self) -> int:
        return self._file.size

    async def go_on(self) -> None:
        """Count what an earlier run left."""
        descriptor = self._file.descriptor
        there = os.fstat(descriptor).st_size
        if not self._promise.lasting or (self._promise.size is not None and there > self._promise.size):
            self.begin_anew()
            return
        while self.size < there and (data := await asyncio.to_thread(os.pread, descriptor, _READ, self.size)):
            await self._update([data])
            self._file.size += len(data)

    async def append(self, pieces: Sequence[bytes]) -> None:
        """Not copied together: that would take longer than to count digests of them."""
        size = sum(map(len, pieces))
        if size < _INLINE:
            self._file.write(pieces)
            await self._update(pieces)
        else:
            # All of these let other threads run.
            await _to_its_end(asyncio.gather(asyncio.to_thread(self._file.write, pieces), self._update(pieces)))
        if self._file.cached - self._flushed >= _FLUSHED and (self._flushing is None or self._flushing.done()):
            self._flush()

    def begin_anew(self) -> None:
        self._file.truncate()
        self._hashing = Hashing(self._promise)

    async def finish(self, name: str) -> str:
        """It is whole and on the disk then; its SHA-256. Raises DamagedError, and begins anew."""
        try:
            if self._promise.size not in (None, self.size):
                raise DamagedError(f"{name} has {self.size} bytes, and should have {self._promise.size}")
            self._hashing.check(name)
        except DamagedError:
            self.begin_anew()
            raise
        if self._flushing is not None:
            await asyncio.wrap_future(self._flushing)
        await asyncio.to_thread(os.fsync, self._file.descriptor)
        return self._hashing.sha256

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.result()  # what the disk refused is said once, and not again by the last call
        # By a descriptor of its own: this one may be closed before the disk is done.
        self._flushing = _flusher.submit(_sync_and_close, os.dup(self._file.descriptor))
        self._flushed = self._file.cached

    async def _update(self, pieces: Sequence[bytes]) -> None:
        if sum(map(len, pieces)) < _INLINE:
            for each in self._hashing.hashes:
                _update(each, pieces)
        else:
            await asyncio.gather(*(asyncio.to_thread(_update, each, pieces) for each in self._hashing.hashes))


async def _to_its_end(work: "asyncio.Future[Any]") -> None:
    """Also where this is cancelled: a thread that still wrote would do so by a descriptor that is another file's."""
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _update(counted: Hash, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        counted.update(piece)


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
