"""What is in a folder of weights, and by what it was verified: a file in it, written when all the others are whole."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headwater.fetch.errors import FetchError

MANIFEST: Final = ".headwater-manifest.json"


@dataclass(frozen=True, slots=True)
class Record:
    """A file that is whole."""

    name: str
    size: int
    sha256: str
    verified_by: str
    """Which digest its source had for it; `size`, or `nothing`, where it had none."""


@dataclass(frozen=True, slots=True)
class Manifest:
    source: str
    revision: str
    state: str
    """What the source was at that revision: a commit, a digest."""
    files: tuple[Record, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=())
    """Files of the source that were not taken."""

    @property
    def origin(self) -> str:
        """As people asked for it."""
        revision = f" at {self.revision}" if self.source.startswith("hf://") else ""
        chosen = [f" --{name} {each}" for name in ("include", "exclude") for each in getattr(self, name)]
        return f"{self.source}{revision}{''.join(chosen)}"

    def summary(self) -> str:
        """`12 files, 15.2 GiB, verified: 10 by sha256, 2 by git blob id`."""
        by = Counter(record.verified_by for record in self.files)
        kinds = ", ".join(f"{count} by {kind}" for kind, count in sorted(by.items()))
        return f"{len(self.files)} files, {gib(sum(each.size for each in self.files))}, verified: {kinds}"

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read(folder: Path) -> Manifest:
    """Raises FetchError where the folder has none."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise FetchError(f"{folder} has no {MANIFEST}: headwater fetch did not put it there") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FetchError(f"{folder / MANIFEST} cannot be read: {error}") from None


def verify(folder: Path) -> Manifest:
    """Read all again. Raises FetchError where something is not as the manifest says, and OSError."""
    manifest = read(folder)
    wrong = list(_differences(folder, {record.name: record for record in manifest.files}))
    if wrong:
        shown = "; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise FetchError(f"{folder} is not as it was fetched: {shown}. Remove it, and fetch it again")
    return manifest


def _differences(folder: Path, records: Mapping[str, Record]) -> Iterator[str]:
    there = names_in(folder)
    for name, record in records.items():
        if name not in there:
            yield f"{name} is missing"
        elif (size := (folder / name).stat().st_size) != record.size:
            yield f"{name} has {size} bytes, not {record.size}"
        else:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != record.sha256:
                yield f"{name} has other bytes"
    yield from (f"{name} is not of the source" for name in there if name not in records and name != MANIFEST)


def names_in(folder: Path) -> Sequence[str]:
    """Of all that is no folder."""
    paths = sorted(folder.rglob("*"))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_symlink() or not path.is_dir()]


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
