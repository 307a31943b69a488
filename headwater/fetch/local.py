"""file://PATH and package://NAME: what is on this machine already, copied."""

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from headwater.fetch.download import File
from headwater.fetch.errors import FetchError
from headwater.fetch.promise import Promise
from headwater.fetch.source import Asking, Listing
from headwater.fetch.transport import Answer


class _Copy:
    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def open(self, start: int, stop: int | None, validator: str | None) -> AsyncIterator[Answer]:
        with self._path.open("rb") as file:
            state = os.fstat(file.fileno())
            file.seek(start)
            left = (state.st_size if stop is None else stop) - start
            yield Answer(start, state.st_size, str(state.st_mtime_ns), True, _Reading(file, left).read)


async def list_files(source: str, revision: str, asking: Asking) -> Listing:
    package = source.startswith("package://")
    root = _package(source) if package else Path(source.removeprefix("file://"))
    if root.is_file():
        paths = {root.name: root}
        chosen = list(paths)
    elif root.is_dir():
        found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
        # The code of a package is not the model's.
        paths = {name: path for name, path in found.items() if not (package and name.endswith(".py"))}
        chosen = asking.wish.choose(list(paths))
    else:
        raise FetchError(f"{source}: there is no {root}")
    files = [File(name, _promise(paths[name]), _Copy(paths[name])) for name in chosen]
    return Listing("", files, [name for name in paths if name not in chosen])


def _promise(path: Path) -> Promise:
    state = path.stat()
    return Promise(state.st_size, None, f"{path} {state.st_mtime_ns} {state.st_ino}")


class _Reading:
    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file = file
        self._left = left

    async def read(self, most: int) -> list[bytes]:
        data = await asyncio.to_thread(self._file.read, min(most, self._left))
        self._left -= len(data)
        return [data] if data else []


def _package(source: str) -> Path:
    """Where an installed Python package lies. It is not imported: it may need anything."""
    name = source.removeprefix("package://")
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FetchError(f"the Python package {name!r} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
