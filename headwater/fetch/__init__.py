"""`headwater fetch`: the weights of a source into a folder, verified, whole or not at all.

    source ──► what there is, and ──► what is ──► parts, by one ──► tree ──► manifest ──► FOLDER
               what it promises       wanted      transport        (renames, each the only one of its name)

A kind of source (`hub`, `s3`, `oci` with `registry`, `local`) does two things: it lists its files with what it promises
of each (`promise`: size, digest, or a state such as an ETag), and says how to ask for one. The rest is the same:

- `choice` is the one rule of what is taken; `Wish` is what somebody wants instead.
- `client` is HTTP, by threads; `transport` believes status, Content-Range and validator of an answer, not what was
  asked for.
- `download` brings one file: on from the byte, in several ranges at once, anew where an answer is of other bytes.
- `growing` counts digests while the bytes come; a file that does not keep its promise never gets its name.
- `patience` counts failures without progress, over all requests together: a busy server is asked less, and later.
- `layers` reads images: an index of headers, and then plain files alone, into paths of our own making.
- `partial` is FOLDER.partial. Whoever is killed leaves it so that the next one ends as if nothing had been.
- `manifest` is in the folder at the end: sizes and digests of all files, their source, and what they were verified by.

A folder is there once all of it is on the disk. It holds what its manifest says: another source, or another revision,
is an error, and nothing is ever fetched over it.
"""

import asyncio
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import structlog

from headwater.extras import missing
from headwater.fetch.choice import Wish
from headwater.fetch.client import make_client
from headwater.fetch.errors import ChangedError, FetchError
from headwater.fetch.manifest import Manifest, read
from headwater.fetch.partial import Partial, locked
from headwater.fetch.patience import Lines
from headwater.fetch.source import Asking, Source
from headwater.fetch.taking import Taking
from headwater.fetch.transport import Transport
from headwater.validation import found

log = structlog.get_logger(__name__)

_KINDS: Final = {
    "hf": "headwater.fetch.hub",
    "s3": "headwater.fetch.s3",
    "oci": "headwater.fetch.oci",
    "file": "headwater.fetch.local",
    "package": "headwater.fetch.local",
}
"""Module by scheme."""
_EXTRAS: Final = {"s3": "fetch"}
_LISTINGS: Final = 3
"""Of a source that changes while it is fetched."""
_SHOWN: Final = 20
"""Names of a log line."""


def fetch(
    source: str, folder: Path, revision: str = "main", wish: Wish | None = None, progress_port: int | None = None
) -> Manifest:
    """Have `folder` hold what `source` is at `revision`. Raises FetchError.

    `progress_port`: where to tell over HTTP how far it is; None: nowhere.
    """
    wanted = Manifest(source, revision, "", (), *((wish.include, wish.exclude) if wish else ()))
    module = _module(source)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                return _there(folder, wanted)
            return asyncio.run(_fetch(module, folder, wanted, progress_port))
    except OSError as error:
        raise FetchError(f"{folder} cannot be written: {error.strerror or error}") from error


def _there(folder: Path, wanted: Manifest) -> Manifest:
    """Raises FetchError where it is something else."""
    there = read(folder)
    if there.origin != wanted.origin:
        raise FetchError(f"{folder} holds {there.origin}, not {wanted.origin}: remove it, or name another folder")
    Partial(folder).remove()  # of one that was killed after its last step
    log.info("there already", folder=str(folder))
    return there


async def _fetch(module: Source, folder: Path, wanted: Manifest, progress_port: int | None) -> Manifest:
    wish, lines = Wish(wanted.include, wanted.exclude), Lines()
    asking = Asking(Transport(make_client()), lines, wish)
    for last in (False,) * (_LISTINGS - 1) + (True,):
        listing = await module.list_files(wanted.source, wanted.revision, asking)
        partial = Partial(folder)
        taking = Taking(partial, lines, listing, wish, progress_port)
        try:
            await taking.take()
            break
        except ChangedError as error:
            if last:
                raise FetchError(f"{error}, again and again") from None
            log.warning("listed anew", reason=str(error))
    manifest = replace(wanted, state=listing.state, files=partial.records(), left_out=taking.left_out)
    partial.complete(manifest)
    if manifest.left_out:
        log.info("left out", count=len(manifest.left_out), files=manifest.left_out[:_SHOWN])
    log.info("fetched", source=wanted.source, folder=str(folder), content=manifest.summary())
    return manifest


def _module(source: str) -> Source:
    scheme, separator, _ = source.partition("://")
    if not separator or scheme not in _KINDS:
        allowed = ", ".join(f"{kind}://" for kind in _KINDS)
        raise FetchError(f"the source must begin with one of {allowed}; found {found(source)}")
    try:
        return cast("Source", importlib.import_module(_KINDS[scheme]))
    except ModuleNotFoundError as error:
        raise FetchError(missing(str(error.name), _EXTRAS.get(scheme, "fetch"))) from None
