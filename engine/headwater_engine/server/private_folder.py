"""A folder for sockets that nobody else may open, gone with its owner, however that ends."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "headwater-engine-"
_YOUNG = 60
"""Seconds in which a folder's owner may not have locked it yet."""
_LONGEST = 72
"""Bytes of the folder's own folder: the path of a socket in it has at most 107."""


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """The folder. Those whose owners were killed are removed first: only the living hold the lock on theirs."""
    _remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=_above()) as name, _locked(Path(name)):
        yield Path(name)


def _above() -> Path:
    """Where temporary files go, unless its name is too long for sockets."""
    usual = tempfile.gettempdir()
    return Path(usual if len(os.fsencode(usual)) <= _LONGEST else "/tmp")


def _remove_leftovers() -> None:
    for folder in _above().glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or its owner lives
            if time.time() - folder.stat().st_mtime > _YOUNG:
                with _locked(folder):
                    shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError where another process has it. The kernel ends the lock with the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
