"""The key that an endpoint wants to see, kept where others keep secrets: a variable, or a file that may change."""

import os
import re
from pathlib import Path
from typing import Final

import structlog

from headwater_router.endpoints.address import EndpointError
from headwater_router.files import read_file

log = structlog.get_logger(__name__)

_LONGEST: Final = 8192
_KEY: Final = re.compile(rb"[\x21-\x7e]+")
"""What a header may hold; a line break in it would be a header of its own."""


class ApiKey:
    """Where the key is, and the key as it was when it could be read last. It is in no message, and in no `repr`."""

    __slots__ = ("_header", "_lost", "_seen", "_variable", "file")

    def __init__(self, variable: str, file: str) -> None:
        """One of the two, or none for an endpoint that wants no key."""
        self._variable = variable
        self.file = file
        self._header = b""
        self._seen: object = None
        self._lost = ""

    @property
    def header(self) -> bytes:
        """A line of a request's head; empty where there is no key."""
        return self._header

    @property
    def source(self) -> str:
        """What the settings call it. Empty: there is none."""
        if self._variable:
            return f"api_key_env={self._variable}"
        return f"api_key_file={self.file}" if self.file else ""

    def read(self) -> None:
        """Read it, if it may have changed. Raises EndpointError where it cannot be read."""
        if self._variable:
            self._take(os.environ.get(self._variable, "").encode(errors="replace"))
        elif self.file:
            try:
                status = Path(self.file).stat()
                stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
                if stamp == self._seen:
                    return
                content = read_file(Path(self.file), _LONGEST + 3)
            except OSError as error:
                raise self._error(error.strerror or str(error)) from None
            self._take(content.rstrip(b"\r\n"))
            self._seen = stamp

    def refresh(self) -> None:
        """As `read`, but where it cannot be read now the last one stays in force, and the log says so, once."""
        lost = ""
        try:
            self.read()
        except EndpointError as error:
            lost = str(error)
        if lost and lost != self._lost:
            log.error("an endpoint's key is lost; the last good one stays in force", reason=lost)
        self._lost = lost

    def _take(self, key: bytes) -> None:
        if not key:
            raise self._error("there is nothing")
        if len(key) > _LONGEST or not _KEY.fullmatch(key):
            raise self._error(f"a key is at most {_LONGEST} printable characters without spaces")
        self._header = b"authorization: Bearer %b\r\n" % key

    def _error(self, reason: str) -> EndpointError:
        return EndpointError(f"{self.source}: no key can be read there: {reason}")
