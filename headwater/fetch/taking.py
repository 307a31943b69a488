"""All files of one listing into the folder: layers first, then what is in them and beside them, the manifest last."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from headwater.fetch import layers
from headwater.fetch.choice import Wish
from headwater.fetch.download import Download, File
from headwater.fetch.errors import FetchError
from headwater.fetch.growing import Growing
from headwater.fetch.manifest import Record
from headwater.fetch.partial import Partial, check_names, part_name
from headwater.fetch.patience import Lines, at_once
from headwater.fetch.progress import Watch
from headwater.fetch.promise import Promise
from headwater.fetch.source import Listing

_FILES: Final = 16
"""That are on the way at once."""
_PIECES: Final = 16
"""That wait in memory at once, for their turn."""
_CHUNK: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in a layer."""

    promise: Promise
    node: layers.Node


class Taking:
    """Calls raise FetchError and OSError."""

    def __init__(
        self, partial: Partial, lines: Lines, listing: Listing, wish: Wish, progress_port: int | None = None
    ) -> None:
        self._partial = partial
        self._lines = lines
        self._listing = listing
        self._wish = wish
        self._left_out = list(listing.left_out)
        self._layers = {part_name(file.name, file.promise): file for file in listing.layers}
        """Each once, although an image may name one twice."""
        self._files = asyncio.Semaphore(_FILES)
        self._pieces = asyncio.Semaphore(_PIECES)
        total = sum(file.promise.size or 0 for file in [*listing.files, *self._layers.values()])
        self._watch = Watch(total, port=progress_port)

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(self._left_out)

    async def take(self) -> None:
        """Until the tree is whole."""
        partial, files = self._partial, self._listing.files
        packed = sum(file.promise.size or 0 for file in self._layers.values())
        partial.begin()
        partial.keep_layers(self._layers)
        partial.check_room(packed + sum(file.promise.size or 0 for file in files))
        async with self._watch.shown():
            await at_once(self._grow(file, partial.layers / part) for part, file in self._layers.items())
            members = await asyncio.to_thread(self._members)
            promises = {file.name: file.promise for file in files} | {
                name: each.promise for name, each in members.items()
            }
            if not promises:
                raise FetchError("there is nothing in the source that is wanted")
            check_names(partial.tree, promises)
            parts = {name: part_name(name, promise) for name, promise in promises.items()}
            partial.keep(parts)
            partial.check_room(packed + sum(promise.size or 0 for promise in promises.values()))
            # A file of an archive has the name rather than one beside it, as if it had been unpacked over that.
            await at_once(self._fetch(file, parts[file.name]) for file in files if file.name not in members)
            await self._unpack(members, parts)

    # Files

    async def _fetch(self, file: File, part: str) -> None:
        if (whole := self._partial.record(file.name)) is not None:
            self._watch.found(whole.size)
            return
        path = self._partial.parts / part
        sha256, size = await self._grow(file, path)
        self._partial.finish(part, Record(file.name, size, sha256, file.promise.verified_by))

    async def _grow(self, file: File, path: Path) -> tuple[str, int]:
        """Its SHA-256 and size, once it is whole."""
        async with self._files:
            growing = Growing(path, file.promise)
            try:
                await growing.go_on()
                self._watch.found(growing.size)
                sha256 = await Download(file, growing, self._lines, self._pieces, self._watch.came).run()
                return sha256, growing.size
            finally:
                growing.close()

    # Layers

    def _archives(self) -> list[Path]:
        """In the order in which they lie on one another."""
        return [self._partial.layers / part_name(file.name, file.promise) for file in self._listing.layers]

    def _members(self) -> dict[str, _Member]:
        """What is wanted of the layers."""
        if not self._layers:
            return {}
        nodes = layers.Index.of(self._archives()).model()
        names = self._wish.choose(list(nodes))
        self._left_out += [name for name in nodes if name not in names]
        states = [file.name for file in self._listing.layers]
        return {
            name: _Member(Promise(node.size, None, f"{states[node.layer]} {node.number}"), node)
            for name, node in nodes.items()
            if name in names
        }

    async def _unpack(self, members: Mapping[str, _Member], parts: Mapping[str, str]) -> None:
        wanted: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, member in members.items():
            if self._partial.record(name) is None:
                wanted[member.node.layer][member.node.number].append(name)
        for layer, archive in enumerate(self._archives()):
            if layer in wanted:
                await self._unpack_layer(archive, wanted[layer], parts, self._listing.layers[layer].promise)

    async def _unpack_layer(
        self, archive: Path, wanted: dict[int, list[str]], parts: Mapping[str, str], promise: Promise
    ) -> None:
        with layers.opened(archive) as members:
            for number in range(max(wanted) + 1):
                member = await asyncio.to_thread(members.next)
                if number in wanted and member is not None and (content := members.extractfile(member)) is not None:
                    for name, (sha256, size) in (await self._write(content, wanted[number], parts)).items():
                        record = Record(name, size, sha256, f"{promise.verified_by} of its layer")
                        self._partial.finish(parts[name], record)

    async def _write(
        self, content: IO[bytes], names: Sequence[str], parts: Mapping[str, str]
    ) -> dict[str, tuple[str, int]]:
        """A file that may have several names; SHA-256 and size of each."""
        with contextlib.ExitStack() as stack:
            growing = {name: Growing(self._partial.parts / parts[name], Promise(None)) for name in names}
            for each in growing.values():
                stack.callback(each.close)
                each.begin_anew()
            while data := await asyncio.to_thread(content.read, _CHUNK):
                for each in growing.values():
                    await each.append([data])
            return {name: (await each.finish(name), each.size) for name, each in growing.items()}
