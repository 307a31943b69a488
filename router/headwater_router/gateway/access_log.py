"""The access log: one JSON line for each request, of what a log may keep. No prompts, no keys, no query strings.

The token path pays for the line's bytes and no more. Lines are gathered for a moment, and written by a thread: a pipe
that nobody reads or a disk that hangs holds up this thread alone. What it cannot keep up with is dropped and counted,
so a log never costs a request, nor memory without bound.
"""

import asyncio
import errno
import os
import select
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import msgspec
import structlog

from headwater.tally import Count

log = structlog.get_logger(__name__)

OFF: Final = "off"
STDOUT: Final = "-"

_GATHER: Final = 0.2
"""Seconds that a line may wait for others."""
_FULL: Final = 64 * 1024
"""Bytes that do not wait."""
_MOST_WAITING: Final = 8 * 2**20
"""Bytes that the thread may be behind with."""
_LAST_LINES: Final = 1.0
"""Seconds that the thread gets at the end."""
_LONGEST_NAME: Final = 128
_LONGEST_TEXT: Final = 256
"""Characters."""
_MODE: Final = 0o640
"""Of a new file: it has the addresses of clients."""

_encode = msgspec.json.Encoder().encode


class Try(msgspec.Struct):
    """One endpoint that a request was sent to."""

    endpoint: str
    outcome: str
    reason: str = ""
    """In words, where it went wrong."""


class AccessRecord(msgspec.Struct, kw_only=True):
    """One line. What was not measured, or not told by the endpoint, is null. Times are in seconds."""

    time: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    """When the request ended."""
    id: str
    """As in x-request-id."""
    client: str
    """Its address."""
    key: str = ""
    """The name of its API key."""
    method: str
    path: str
    """Without query."""
    model: str = ""
    status: int
    """As sent to the client; 499 where it left before."""
    outcome: str
    error: str = ""
    """What the router itself answered, where it did: the error's code, or its message."""
    decision: str = ""
    tries: list[Try] = []
    """In their order; the last one answered, if any did."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    queued: float | None = None
    """Until it was first sent to an endpoint."""
    first_token: float | None = None
    """Until that was here."""
    seconds: float
    """Until its end."""
    bytes_in: int = 0
    bytes_out: int = 0


def open_access_log(target: str, dropped: Count) -> "AccessLog | None":
    """None where it is off. `target`: a file, or `-` for stdout. Raises OSError where the file cannot be written."""
    if target == OFF:
        return None
    return AccessLog(_Output(None if target == STDOUT else Path(target)), dropped)


class AccessLog:
    """`write` neither waits nor raises. `dropped` counts lines that were lost."""

    def __init__(self, output: "_Output", dropped: Count) -> None:
        self._writer = _Writer(output, dropped)
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def write(self, record: AccessRecord) -> None:
        """Takes the record over."""
        line = _line(record)
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _FULL:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHER, self.flush)

    def flush(self) -> None:
        """Hand over what was gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            self._writer.take(self._lines, self._size)
            self._lines, self._size = [], 0

    def close(self) -> None:
        """Waits a second at most for the last lines to be written."""
        self.flush()
        self._writer.end()


class _Writer:
    """The thread, and the queue before it."""

    def __init__(self, output: "_Output", dropped: Count) -> None:
        self._output = output
        self._dropped = dropped
        self._lock = threading.Lock()
        """Of the count alone: both sides may lose lines."""
        self._queue: SimpleQueue[tuple[list[bytes], int] | None] = SimpleQueue()
        self._taken = self._done = 0
        """Bytes; each is written by one side, so no lock is needed."""
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def take(self, lines: list[bytes], size: int) -> None:
        if self._taken - self._done + size > _MOST_WAITING:
            self._lose(lines)
            return
        self._taken += size
        self._queue.put((lines, size))

    def end(self) -> None:
        self._queue.put(None)
        self._thread.join(_LAST_LINES)

    def _run(self) -> None:
        well = True
        while (item := self._queue.get()) is not None:
            lines, size = item
            try:
                self._output.write(b"".join(lines))
                well = True
            except OSError as error:
                self._lose(lines)
                if well:
                    log.error("access log cannot be written; lines are lost", reason=error.strerror)
                well = False
            self._done += size
        self._output.close()

    def _lose(self, lines: list[bytes]) -> None:
        with self._lock:
            self._dropped.inc(len(lines))


class _Output:
    """A file that may be moved away by whoever rotates logs, or stdout. For one thread."""

    def __init__(self, path: Path | None) -> None:
        """Raises OSError."""
        self._path = path
        self._file = _open(path) if path is not None else _stdout()
        self._within_line = False
        """A line was cut: the next one must not go on where it ends."""

    def write(self, data: bytes) -> None:
        """All of it. Raises OSError, with any part of it written."""
        self._follow()
        if self._within_line:
            data = b"\n" + data
        left = memoryview(data)
        while left:
            try:
                written = os.write(self._file, left)
            except BlockingIOError:  # Whoever gave us stdout has made it so; others write to it, too.
                select.select([], [self._file], [])
                continue
            self._within_line = left[written - 1] != ord("\n")
            left = left[written:]

    def close(self) -> None:
        if self._path is not None:
            os.close(self._file)

    def _follow(self) -> None:
        """Go on in a new file where the one that is open has another name by now."""
        if self._path is None:
            return
        try:
            moved = not os.path.samestat(self._path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            moved = True
        except OSError:
            moved = False  # Nobody knows; the one that is open still is.
        if moved:
            new = _open(self._path)
            os.close(self._file)
            self._file, self._within_line = new, False


def _stdout() -> int:
    if sys.stdout is None:
        # Its number may be that of a client's connection by now.
        raise OSError(errno.EBADF, "stdout is closed")
    return sys.stdout.fileno()


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)


def _line(record: AccessRecord) -> bytes:
    """What clients send is cut to a length that fits a log."""
    if len(record.path) > _LONGEST_TEXT:
        record.path = record.path[:_LONGEST_TEXT]
    if len(record.model) > _LONGEST_NAME:
        record.model = record.model[:_LONGEST_NAME]
    if len(record.id) > _LONGEST_NAME:
        record.id = record.id[:_LONGEST_NAME]
    if len(record.error) > _LONGEST_TEXT:
        record.error = record.error[:_LONGEST_TEXT]
    record.seconds = round(record.seconds, 6)
    if record.queued is not None:
        record.queued = round(record.queued, 6)
    if record.first_token is not None:
        record.first_token = round(record.first_token, 6)
    try:
        return _encode(record) + b"\n"
    except UnicodeEncodeError:  # Halves of characters, which JSON can spell and UTF-8 cannot.
        for name in ("id", "path", "model", "error"):
            setattr(record, name, getattr(record, name).encode("utf-8", "replace").decode())
        return _encode(record) + b"\n"
