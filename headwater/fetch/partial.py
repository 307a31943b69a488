"""FOLDER.partial: what grows beside FOLDER until it can take its place.

    tree/      what becomes FOLDER, by one rename
    parts/     files on the way; each is called by what was promised of it, and as long as what has come
    layers/    archives, which are kept until all that is wanted is out of them
    records    a line for each file of `tree`: which promise it kept

Whoever is killed leaves it so that the next one goes on: a record is written before its file gets its name, and a file
without a record, or a part without a promise in the present plan, is removed. What was promised is in the part's name,
so no part is ever taken for one of other content.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from headwater.fetch.errors import FetchError
from headwater.fetch.manifest import MANIFEST, Manifest, Record, gib, names_in
from headwater.fetch.promise import Promise

log = structlog.get_logger(__name__)

_SPARE: Final = 64 * 1024 * 1024
"""Bytes that a volume needs beside the files."""


@dataclass(frozen=True, slots=True)
class _Line:
    part: str
    record: Record


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone at a folder, also among the machines that share a volume. Waits. The kernel frees it if we are killed."""
    path = folder.with_name(f"{folder.name}.lock")
    while True:
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("somebody else fetches into this folder; waiting", folder=str(folder))
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_still(path, lock):  # Who had it removed it: the next one locks another file.
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_still(path: Path, file: IO[str]) -> bool:
    """Whether the open file is what is at its path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def partial_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def part_name(name: str, promise: Promise) -> str:
    """A name of our own making: what a source calls its files is in no path but the last."""
    unique = "" if promise.lasting else os.urandom(8).hex()
    return hashlib.sha256(repr((name, promise, unique)).encode()).hexdigest()[:32]


class Partial:
    """Calls raise OSError where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = partial_of(folder)
        self.tree = self._root / "tree"
        self.parts = self._root / "parts"
        self.layers = self._root / "layers"
        self._records = self._root / "records"
        self._whole: dict[str, _Line] = {}

    def begin(self) -> None:
        for folder in (self._root, self.tree, self.parts, self.layers):
            folder.mkdir(exist_ok=True)
        for path in self._root.iterdir():
            if path.name not in ("tree", "parts", "layers", "records"):  # of an earlier version
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._whole = {line.record.name: line for line in self._read_records()}

    def keep_layers(self, names: Iterable[str]) -> None:
        """Remove those of another plan."""
        _keep(self.layers, set(names))

    def keep(self, wanted: Mapping[str, str]) -> None:
        """Remove all files of another plan. `wanted`: parts by the name of their file."""
        _keep(self.parts, set(wanted.values()))
        self._whole = {
            name: line
            for name, line in self._whole.items()
            if wanted.get(name) == line.part and _size(self.tree / name) == line.record.size
        }
        for name in names_in(self.tree):
            if name not in self._whole:
                (self.tree / name).unlink()
        for path in sorted((path for path in self.tree.rglob("*") if path.is_dir()), reverse=True):
            if not any(path.iterdir()):
                path.rmdir()
        _write_whole(self._records, b"".join(map(_encoded, self._whole.values())))

    def record(self, name: str) -> Record | None:
        """Of a file that is whole."""
        return self._whole[name].record if name in self._whole else None

    def records(self) -> tuple[Record, ...]:
        return tuple(line.record for _, line in sorted(self._whole.items()))

    def finish(self, part: str, record: Record) -> None:
        """The part, which is on the disk by now, gets its file's name."""
        target = inside(self.tree, record.name)
        line = _Line(part, record)
        _append(self._records, _encoded(line))
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.parts / part).rename(target)
        self._whole[record.name] = line

    def check_room(self, size: int) -> None:
        """`size`: bytes of the whole. Raises FetchError where they cannot fit."""
        free, there = shutil.disk_usage(self._root).free, _bytes_in(self._root)
        if size - there > free - _SPARE:
            raise FetchError(
                f"the weights take {gib(size)}, of which {gib(there)} are there, and {gib(free)} are free: give the "
                "volume a larger spec.weights.size, and delete its PersistentVolumeClaim so that it is made anew"
            )

    def complete(self, manifest: Manifest) -> None:
        """The last step, which cannot be done by half: all is on the disk before the rename."""
        note = self._root / "manifest"
        _write_whole(note, manifest.encode())
        note.rename(self.tree / MANIFEST)
        for folder in (self.tree, *(path for path in self.tree.rglob("*") if path.is_dir())):
            sync(folder)
        self.tree.rename(self._folder)  # an empty folder may be there
        sync(self._folder.parent)
        self.remove()

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def _read_records(self) -> Iterator[_Line]:
        """The last line may be half of one."""
        text = self._records.read_bytes() if self._records.exists() else b""
        for line in text.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line, type=_Line)


def _keep(folder: Path, names: Set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def inside(folder: Path, name: str) -> Path:
    """Where a file of this name goes. Raises FetchError for one that would be elsewhere."""
    target = folder / name
    if not name or not _writable(name) or ".." in target.parts or target == folder or not target.is_relative_to(folder):
        raise FetchError(f"the source has a file with the name {name!r}, which leads out of the folder")
    return target


def _writable(name: str) -> bool:
    """Whether it is text: JSON and archives may hold halves of characters."""
    return "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Raises FetchError for names that lead out of the folder, or that cannot be there together."""
    seen: dict[Path, str] = {}
    for name in names:
        target = inside(folder, name)
        if target in seen:
            raise FetchError(f"the source has files with the names {seen[target]!r} and {name!r}, which are one here")
        seen[target] = name
    for target, name in seen.items():
        if both := next((parent for parent in target.parents if parent in seen), None):
            raise FetchError(
                f"the source has a file with the name {seen[both]!r}, and {name!r} in a folder of that name"
            )


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _write_whole(path: Path, content: bytes) -> None:
    """Whoever reads it finds all of it, or what was there before."""
    new = path.with_name(f"{path.name}.new")
    _write(new, content, os.O_TRUNC)
    new.rename(path)


def _append(path: Path, content: bytes) -> None:
    _write(path, content, os.O_APPEND)


def _write(path: Path, content: bytes, how: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o644)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encoded(line: _Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
