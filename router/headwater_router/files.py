"""Files that people change while the router runs. They are read on the one thread that serves everybody."""

import errno
import stat
from pathlib import Path


class IrregularFileError(OSError):
    """To open a pipe would wait until somebody writes, and with it all else."""


def read_file(path: Path, most: int) -> bytes:
    """At most so many bytes of it. Raises OSError, and ValueError for what is no path."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise IrregularFileError(errno.EINVAL, "it is no regular file")
    with path.open("rb") as opened:
        return opened.read(most)
