"""What an image's layers hold when they lie on one another, without a file system.

An index is made of the members' headers alone: later layers replace and delete what is in earlier ones, by the rules of
the OCI image specification (layer.md, Applying Changesets), and links are followed in the index, where there is no way
out. Then the members that are wanted are read, plain files alone, and whoever reads them says where they go.
"""

import re
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import IO, Final

from headwater.extras import missing
from headwater.fetch.errors import FetchError

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ROOT: Final = "models"
_SYSTEM: Final = re.compile(
    "afs|bin|boot|dev|etc|home|lib(x?32|64)?|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|var"
)
"""Folders at an image's root that are a system's, not a model's."""
_MOST_LINKS: Final = 40
"""On the way to one file, as Linux has it."""


class Kind(Enum):
    FILE = auto()
    FOLDER = auto()
    LINK = auto()


@dataclass(slots=True, eq=False)
class Node:
    kind: Kind
    layer: int = 0
    number: int = 0
    """Of the member in its archive."""
    size: int = 0
    target: str = ""
    """Of a link."""
    children: dict[str, "Node"] = field(default_factory=dict)


class Index:
    """The tree of all layers. Calls raise FetchError."""

    def __init__(self) -> None:
        self._root = Node(Kind.FOLDER)

    @classmethod
    def of(cls, archives: Sequence[Path]) -> "Index":
        index = cls()
        for layer, archive in enumerate(archives):
            with opened(archive) as members:
                index.lay(layer, list(members))
        return index

    def lay(self, layer: int, members: Sequence[tarfile.TarInfo]) -> None:
        """One layer on top of those before."""
        placed = [path_of(member.name).rpartition("/")[::2] for member in members]
        for folder, base in placed:  # whiteouts are for earlier layers, wherever they stand in this one
            if base.startswith(_WHITEOUT) and (way := self.follow(folder)):
                if base == _OPAQUE:
                    way[-1].children.clear()
                else:
                    way[-1].children.pop(base.removeprefix(_WHITEOUT), None)
        for number, ((folder, base), member) in enumerate(zip(placed, members, strict=True)):
            if base and not base.startswith(_WHITEOUT):
                self._add(folder, base, Node(Kind.FILE, layer, number, member.size), member)

    def _add(self, folder: str, base: str, node: Node, member: tarfile.TarInfo) -> None:
        way = self.follow(folder, make=True)
        if way is None:
            raise FetchError(f"a layer cannot be unpacked: {folder} is a link in a circle")
        siblings = way[-1].children
        if member.isdir():
            if base not in siblings or siblings[base].kind is not Kind.FOLDER:
                siblings[base] = Node(Kind.FOLDER)
        elif member.issym():
            siblings[base] = Node(Kind.LINK, target=member.linkname)
        elif member.islnk():
            # Another name of a file as it is now. Where there is none, it leads to nothing.
            twin = self.follow(path_of(member.linkname))
            there = twin is not None and twin[-1].kind is Kind.FILE
            siblings[base] = twin[-1] if twin and there else Node(Kind.LINK, target=f"/{member.linkname}")
        elif member.isreg():
            siblings[base] = node
        else:
            siblings.pop(base, None)

    def follow(self, path: str, start: Sequence[Node] = (), *, make: bool = False) -> list[Node] | None:
        """The nodes from the root to where it leads, over all links, which do not lead out of the root.

        None: to nothing, or in a circle. `make`: what is missing becomes a folder.
        """
        way = list(start) or [self._root]
        left, jumps = deque(path.split("/")), 0
        while left:
            part = left.popleft()
            if part == "..":
                way[1:] = way[1:-1]
            elif part not in ("", "."):
                node = way[-1].children.get(part)
                if make and (node is None or node.kind is Kind.FILE):
                    node = way[-1].children[part] = Node(Kind.FOLDER)
                if node is None:
                    return None
                if node.kind is not Kind.LINK:
                    way.append(node)
                    continue
                jumps += 1
                if jumps > _MOST_LINKS:
                    return None
                way = [self._root] if node.target.startswith("/") else way
                left.extendleft(reversed(node.target.split("/")))
        return way

    def model(self) -> dict[str, Node]:
        """The files in `models/`, or else those at the root that are no system's, by name."""
        way = self.follow(_ROOT)
        if way and (found := dict(self._walk(way, "", (way[-1],)))):
            return found
        top = Node(
            Kind.FOLDER,
            children={name: node for name, node in self._root.children.items() if not _SYSTEM.fullmatch(name)},
        )
        return dict(self._walk([top], "", (top,)))

    def _walk(self, way: Sequence[Node], shown: str, above: tuple[Node, ...]) -> Iterator[tuple[str, Node]]:
        for base in sorted(way[-1].children):
            name = f"{shown}/{base}" if shown else base
            found = self.follow(base, way)
            if found is None:
                raise FetchError(f"in the image, {name} is a link that leads to nothing")
            if found[-1].kind is Kind.FILE:
                yield name, found[-1]
            elif found[-1] not in above:  # a folder of its own
                yield from self._walk(found, name, (*above, found[-1]))


@contextmanager
def opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """To be read from front to end. Raises FetchError where it cannot be read."""
    try:
        with archive.open("rb") as file:
            packed = file.read(len(_ZSTD)) == _ZSTD
            file.seek(0)
            with tarfile.open(fileobj=_unzstd(file), mode="r|") if packed else tarfile.open(fileobj=file) as members:
                yield members
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise FetchError(f"a layer cannot be unpacked: {error}") from None


def _unzstd(file: IO[bytes]) -> IO[bytes]:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise FetchError(missing("zstandard", "engine")) from None
    return zstandard.ZstdDecompressor().stream_reader(file)


def path_of(name: str) -> str:
    """A member's path from the image's root. Raises FetchError for one that would be elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise FetchError(f"a layer cannot be unpacked: it has a file with the name {name!r}, which leads out of it")
    return "/".join(parts)
