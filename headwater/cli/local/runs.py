"""What is up on this machine: each `headwater up` writes it down beside its logs, and who asks looks whether it lives.

A run lives as long as its lock is held, which the kernel lets go of when the process ends, however it does.
"""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

DEFAULT_STATE: Final = Path(".headwater")
_LOCK: Final = "pid"
_RECORD: Final = "up.json"
_LOOK_EVERY: Final = 0.1


class Part(msgspec.Struct, frozen=True):
    """One process of a run."""

    name: str
    url: str
    ready_path: str
    log: str


class Run(msgspec.Struct, frozen=True):
    """One `headwater up`."""

    name: str
    """The file's, without its ending."""
    file: str
    pid: int
    url: str
    """Of the gateway."""
    models: list[str]
    parts: list[Part]


class BusyError(Exception):
    """Another run has the folder: its `pid`."""

    def __init__(self, pid: str) -> None:
        super().__init__(pid)
        self.pid = pid


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises BusyError."""
    with (folder / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BusyError(lock.read().strip()) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)
            (folder / _RECORD).unlink(missing_ok=True)


def record(folder: Path, run: Run) -> None:
    """Write down what is up; `alone` takes it away at the end. Raises OSError."""
    (folder / _RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(run)))


def runs(state: Path) -> list[Run]:
    """Those that are up."""
    found = []
    for path in sorted(state.glob(f"*/{_RECORD}")):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if _is_held(path.parent):
                found.append(msgspec.json.decode(path.read_bytes(), type=Run))
    return found


def stop(state: Path, run: Run, patience: float) -> bool:
    """Ask it to end, and wait until it has. Says False where it has not within `patience` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.pid, signal.SIGTERM)
    until = time.monotonic() + patience
    while _is_held(state / run.name):
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_EVERY)
    return True


def _is_held(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
