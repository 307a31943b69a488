"""`headwater fetch`: the weights of a source into a folder, whole or not at all.

A folder that is there is complete: what is fetched grows beside it and gets its name at the end. What came before an
interruption is used again. Each kind of source is a file of this package; all of them write through `files`.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Final

import structlog

from headwater.fetch.errors import FetchError
from headwater.fetch.files import locked, move_into_place, partial_of
from headwater.validation import found

log = structlog.get_logger(__name__)

_KINDS: Final = {
    "hf": "headwater.fetch.hub",
    "s3": "headwater.fetch.s3",
    "oci": "headwater.fetch.oci",
    "file": "headwater.fetch.local",
    "package": "headwater.fetch.local",
}
"""Module by scheme; each has `fetch(source, folder, revision)`, which may raise FetchError and OSError."""
_EXTRAS: Final = {"s3": "fetch", "hf": "engine"}


def fetch(source: str, folder: Path, revision: str = "main") -> None:
    """Have `folder` hold what `source` is at `revision`. Raises FetchError."""
    module = _module(source)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if folder.exists():
                log.info("there already", folder=str(folder))
                return
            module.fetch(source, partial_of(folder), revision)
            move_into_place(folder)
    except OSError as error:
        raise FetchError(f"{folder} cannot be written: {error.strerror or error}") from error
    log.info("fetched", source=source, folder=str(folder))


def _module(source: str) -> ModuleType:
    scheme, separator, _ = source.partition("://")
    if not separator or scheme not in _KINDS:
        allowed = ", ".join(f"{kind}://" for kind in _KINDS)
        raise FetchError(f"the source must begin with one of {allowed}; found {found(source)}")
    try:
        return importlib.import_module(_KINDS[scheme])
    except ModuleNotFoundError as error:
        raise FetchError(f"{error.name} is missing: pip install 'headwater[{_EXTRAS[scheme]}]'") from None
