"""Files on the way: the lock, the partial folder, one file after the other, and the move at the end."""

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

import structlog

from headwater.fetch.errors import FetchError, TransientError

log = structlog.get_logger(__name__)

AT_ONCE: Final = 8
"""Files that are fetched at the same time."""
_ORIGIN: Final = ".headwater-origin"
"""In a partial folder, what it is a part of."""
_GROWING: Final = ".incomplete"
_SPARE: Final = 64 * 1024 * 1024
"""Bytes that a volume needs beside the files."""


def partial_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone at a folder, also among the machines that share a volume. Waits. The kernel frees it if we are killed."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("somebody else fetches into this folder; waiting", folder=str(folder))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def begin(partial: Path, origin: str, size: int) -> None:
    """Make the partial folder ready for `size` bytes of `origin`, which names an exact state of the source.

    What another state left there is thrown away: a mixture would look complete. Raises FetchError if it cannot fit.
    """
    note = partial / _ORIGIN
    if partial.exists() and (not note.exists() or note.read_text() != origin):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    note.write_text(origin)
    free, there = shutil.disk_usage(partial).free, bytes_in(partial)
    if size - there > free - _SPARE:
        raise FetchError(
            f"the weights take {gib(size)}, of which {gib(there)} are there, and {gib(free)} are free: give the volume "
            "a larger spec.weights.size, and delete its PersistentVolumeClaim so that it is made anew"
        )


def write(target: Path, size: int | None, read: Callable[[int], Iterable[bytes]]) -> None:
    """Write a file from where it was left off. `read` gives its bytes from an offset on.

    Raises TransientError if they are fewer than `size`, the file's own; what came is kept.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    growing = target.with_name(target.name + _GROWING)
    start = growing.stat().st_size if growing.exists() else 0
    if size is None or start > size:
        start = 0
    if start != size or size == 0:
        with growing.open("r+b" if start else "wb") as file:
            file.seek(start)
            for piece in read(start):
                file.write(piece)
    if size is not None and (came := growing.stat().st_size) != size:
        if came > size:
            growing.unlink()
        raise TransientError(f"{target.name}: {came} bytes came, not {size}")
    growing.rename(target)


def at_once(jobs: Sequence[Callable[[], None]]) -> None:
    """Do them all, a few at a time. The first that fails ends those that have not begun."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for done in as_completed([pool.submit(job) for job in jobs]):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def move_into_place(folder: Path) -> None:
    """The last step, which cannot be done by half."""
    partial = partial_of(folder)
    (partial / _ORIGIN).unlink(missing_ok=True)
    if not any(path.is_file() for path in partial.rglob("*")):
        raise FetchError("there is nothing in the source")
    partial.rename(folder)


def bytes_in(folder: Path) -> int:
    """Files may come and go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                total += path.stat().st_size
    return total


def inside(folder: Path, name: str) -> Path:
    """Where a file of this name goes. Raises FetchError for one that would be elsewhere."""
    target = folder / name
    if not name or ".." in target.parts or not target.is_relative_to(folder):
        raise FetchError(f"the source has a file with the name {name!r}, which leads out of the folder")
    return target


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
