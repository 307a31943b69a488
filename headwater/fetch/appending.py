"""A file that is written at its end, past the kernel's page cache where the file system lets it.

Weights are often more than the memory has room for. Through the cache each byte is copied into a page that has to be
found first, and on a full machine that is somebody else's; from memory that is there already the disk takes it several
times as quickly (benchmarks/results/weights_fetch.md).
"""

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_BLOCK: Final = 4096
"""Bytes. What goes past the cache begins and ends, in the file and in memory, at multiples of this: see open(2)."""
_BUFFER: Final = 4 * 1024 * 1024
_SMALL: Final = 1024 * 1024
"""Bytes below which the disk is not waited for."""


class Appending:
    """Calls raise OSError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        """Bytes that are there, and where the next one goes."""
        self.cached = 0
        """Bytes that went through the cache, so that the disk need not have them yet."""
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._direct = _opened_direct(path)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Not joined by the caller: they are copied once, into memory that lies as the disk wants it."""
        if self._direct is None or sum(map(len, pieces)) < _SMALL:
            for piece in pieces:
                self._write_cached(memoryview(piece))
            return
        # Block by block: the last one that is there may be half full, and is written once more.
        buffer, filled = _memory.buffer, self.size % _BLOCK
        buffer[:filled] = os.pread(self.descriptor, filled, self.size - filled)
        self.size -= filled
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                copied = min(len(rest), _BUFFER - filled)
                buffer[filled : filled + copied] = rest[:copied]
                filled, rest = filled + copied, rest[copied:]
                if filled == _BUFFER:
                    self._write_direct(buffer)
                    filled = 0
        whole = filled - filled % _BLOCK
        self._write_direct(buffer[:whole])
        self._write_cached(buffer[whole:filled])

    def truncate(self) -> None:
        os.ftruncate(self.descriptor, 0)
        self.size = 0

    def close(self) -> None:
        os.close(self.descriptor)
        self._close_direct()

    def _write_direct(self, data: memoryview) -> None:
        """Whole blocks."""
        while self._direct is not None and data:
            try:
                written = os.pwrite(self._direct, data, self.size)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._close_direct()  # some file systems say only now that they cannot
            else:
                self.size, data = self.size + written, data[written:]
                if written % _BLOCK:
                    break  # the disk is nearly full: the cache's way says so, or finds the room
        self._write_cached(data)

    def _write_cached(self, data: memoryview) -> None:
        while data:
            written = os.pwrite(self.descriptor, data, self.size)
            self.size, data = self.size + written, data[written:]
            self.cached += written

    def _close_direct(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None


class _Memory(threading.local):
    """Of one thread, for all files that it writes, one after the other. New memory would cost more than the copy."""

    def __init__(self) -> None:
        self.buffer = memoryview(mmap.mmap(-1, _BUFFER))  # begins at a page


_memory: Final = _Memory()


def _opened_direct(path: Path) -> int | None:
    """Nothing where the file system, or the system, has no such thing."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (OSError, AttributeError):
        return None
