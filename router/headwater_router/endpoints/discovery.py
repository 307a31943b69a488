"""Static endpoints: from flags, and from a file that is read again whenever it changes.

What is wrong at the start ends it, in one sentence. Later the last good set stays in force, whatever becomes of the
file: whoever edits it while the router runs must not stop all traffic by a slip.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
import yaml

from headwater_router.endpoints.endpoint import EndpointError, EndpointSpec
from headwater_router.endpoints.group import agree
from headwater_router.files import read_file

log = structlog.get_logger(__name__)

_LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the file."""
MOST_BYTES: Final = 2**18
"""Of the file: some thousand endpoints, which take seconds to read."""
_LONGEST_PROBLEM: Final = 200

_Stamp = tuple[int, int, int]


class StaticEndpoints:
    """`specs` are those in force."""

    def __init__(self, flags: Sequence[EndpointSpec], path: Path | None) -> None:
        """Raises EndpointError."""
        self._flags = flags
        self._path = path
        self._seen = self._stamp()
        self.specs = _distinct([*flags, *(read_endpoints(path) if path else [])])

    async def changes(self) -> AsyncIterator[list[EndpointSpec]]:
        """Those that are in force now, and again after each change of the file. Nothing that it may hold ends this."""
        yield self.specs
        before = self._seen
        while self._path is not None:
            await asyncio.sleep(_LOOK_EVERY)
            stamp = self._stamp()
            # Only what stood still between two looks is read: half of a list is a list, too.
            if stamp == before != self._seen:
                self._seen = stamp
                if await self._read_again(self._path):
                    yield self.specs
            before = stamp

    async def _read_again(self, path: Path) -> bool:
        try:
            # In a thread: a large file takes seconds.
            self.specs = _distinct([*self._flags, *await asyncio.to_thread(read_endpoints, path)])
        except EndpointError as error:
            log.error("endpoints file refused; the last good one stays in force", reason=str(error))
            return False
        return True

    def _stamp(self) -> _Stamp | None:
        try:
            status = self._path.stat() if self._path else None
        except (OSError, ValueError):
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size) if status else None


def read_endpoints(path: Path) -> list[EndpointSpec]:
    """Raises EndpointError, which names the file, and nothing else."""
    try:
        content = read_file(path, MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise EndpointError(f"{path}: {getattr(error, 'strerror', None) or 'this is no path'}") from None
    try:
        return _distinct([EndpointSpec.of(each) for each in _entries(content)])
    except EndpointError as error:
        raise EndpointError(f"{path}: {error}") from None


def _entries(content: bytes) -> list[dict[object, object]]:
    """Raises EndpointError."""
    if len(content) > MOST_BYTES:
        raise EndpointError(f"a list of endpoints is at most {MOST_BYTES} bytes")
    try:
        entries: Any = yaml.load(content.decode("utf-8-sig"), _Loader)
    except UnicodeDecodeError as error:
        raise EndpointError(f"not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise EndpointError(f"not YAML{place}: {str(error.problem)[:_LONGEST_PROBLEM]!r}") from None
    except Exception:
        # Tags, dates and depths that the library has not thought of raise whatever they raise.
        raise EndpointError("not YAML") from None
    if entries is None:
        raise EndpointError("it is empty; a list of no endpoints is []")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise EndpointError("must be a list of endpoints, each with at least a url")
    return entries


class _Loader(yaml.SafeLoader):
    """Without aliases: a few lines of them are gigabytes once somebody looks at all they stand for."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.get_mark())
        return super().compose_node(parent, index)


def _distinct(specs: Sequence[EndpointSpec]) -> list[EndpointSpec]:
    """The same ones. Raises EndpointError where two of them could be taken for one another."""
    names: dict[str, EndpointSpec] = {}
    urls: dict[str, EndpointSpec] = {}
    for spec in specs:
        if (twin := urls.setdefault(spec.url, spec)) is not spec:
            raise EndpointError(f"endpoints {twin.name!r} and {spec.name!r} have one url, {spec.url}")
        if (twin := names.setdefault(spec.name, spec)) is not spec:
            raise EndpointError(f"endpoints {twin.url} and {spec.url} have one name, {spec.name!r}")
    agree(spec.group for spec in specs)
    return list(specs)
