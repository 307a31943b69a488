"""Static endpoints: from flags, and from a file that is read again whenever it changes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog
import yaml

from headwater_router.endpoints.endpoint import EndpointError, EndpointSpec

log = structlog.get_logger(__name__)

_LOOK_EVERY = 0.5
"""Seconds between two looks at the file."""


def read_endpoints(path: Path) -> list[EndpointSpec]:
    """Raises EndpointError, which names the file."""
    try:
        content = yaml.safe_load(path.read_text()) or []
    except OSError as error:
        raise EndpointError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise EndpointError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise EndpointError(f"{path}: must be a list of endpoints, each with at least a url")
    try:
        return [EndpointSpec.of(each) for each in content]
    except EndpointError as error:
        raise EndpointError(f"{path}: {error}") from None


async def endpoint_sets(flags: Sequence[EndpointSpec], path: Path | None) -> AsyncIterator[list[EndpointSpec]]:
    """The endpoints now, and again after each change of the file.

    Raises EndpointError for a file that is wrong at the start; one that turns wrong later is logged, and the last good
    one stays in force.
    """
    seen = _stamp(path)
    yield _distinct([*flags, *(read_endpoints(path) if path else [])])
    while path is not None:
        await asyncio.sleep(_LOOK_EVERY)
        if (stamp := _stamp(path)) == seen:
            continue
        seen = stamp
        try:
            yield _distinct([*flags, *read_endpoints(path)])
        except EndpointError as error:
            log.error("endpoints file refused; the last one stays in force", reason=str(error))


def _distinct(specs: Sequence[EndpointSpec]) -> list[EndpointSpec]:
    return list({spec.url: spec for spec in specs}.values())


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size) if status else None
