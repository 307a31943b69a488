"""What a source says of a file, and whether that is what came.

A promise is a size and a digest, as far as the source has them. `Hashing` takes the bytes as they come and says at the
end what they were.
"""

import hashlib
import re
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from headwater.fetch.errors import DamagedError

Buffer = bytes | bytearray | memoryview

_WRITTEN: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Kind(StrEnum):
    """Of digest, as the manifest and the operator's status name it."""

    SHA256 = "sha256"
    SHA512 = "sha512"
    SHA1 = "sha1"
    MD5 = "md5"
    CRC32 = "crc32"
    GIT = "git blob id"


@dataclass(frozen=True, slots=True)
class Digest:
    kind: Kind
    value: str
    """In lower hexadecimal. Where it is one of parts' digests, their number follows: `0a1b-7`."""
    part: int | None = None
    """Bytes of each part but the last, where it is such a one."""

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"

    @classmethod
    def parse(cls, text: object) -> "Digest | None":
        """`sha256:...` and `sha512:...` as registries write them; None for anything else, which must be in no path."""
        if not isinstance(text, str) or not _WRITTEN.fullmatch(text):
            return None
        kind, _, value = text.partition(":")
        return cls(Kind(kind), value)


@dataclass(frozen=True, slots=True)
class Promise:
    size: int | None
    digest: Digest | None = None
    state: str = ""
    """What changes with the content, such as an ETag or a commit."""

    @property
    def lasting(self) -> bool:
        """Whether what came of it can be told, later on, from what came of another content."""
        return bool(self.digest or self.state)

    @property
    def verified_by(self) -> str:
        return str(self.digest.kind) if self.digest else "size" if self.size is not None else "nothing"


class Hash(Protocol):
    def update(self, data: Buffer, /) -> None: ...
    def hexdigest(self) -> str: ...


class Hashing:
    """Of one file: SHA-256 for the manifest, and what was promised."""

    def __init__(self, promise: Promise) -> None:
        self._promise = promise
        self._sha256: Hash = hashlib.sha256()
        self._promised: Hash = _promised(promise) or self._sha256

    @property
    def hashes(self) -> tuple[Hash, ...]:
        return (self._sha256,) if self._promised is self._sha256 else (self._sha256, self._promised)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def update(self, data: Buffer) -> None:
        for each in self.hashes:
            each.update(data)

    def check(self, name: str) -> None:
        """Raises DamagedError."""
        digest = self._promise.digest
        if digest is not None and (came := self._promised.hexdigest()) != digest.value:
            raise DamagedError(f"{name} arrived damaged: its {digest.kind} is {came}, and should be {digest.value}")


def _promised(promise: Promise) -> Hash | None:
    """None: nothing was, or what is counted anyway."""
    digest = promise.digest
    if digest is None or (digest.kind is Kind.SHA256 and digest.part is None):
        return None
    return _OfParts(digest.kind, digest.part) if digest.part else _new(digest.kind, promise.size or 0)


def _new(kind: Kind, size: int) -> Hash:
    match kind:
        case Kind.GIT:
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        case Kind.CRC32:
            return _Crc32()
        case _:
            return hashlib.new(kind, usedforsecurity=False)


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Buffer, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


class _OfParts:
    """The digest of the digests of parts, as S3 has it for what was uploaded in parts."""

    def __init__(self, kind: Kind, part: int) -> None:
        self._kind = kind
        self._part = part
        self._digests: list[bytes] = []
        self._hash = _new(kind, 0)
        self._left = part

    def update(self, data: Buffer, /) -> None:
        rest = memoryview(data)
        while rest:
            piece, rest = rest[: self._left], rest[self._left :]
            self._hash.update(piece)
            self._left -= len(piece)
            if not self._left:
                self._digests.append(bytes.fromhex(self._hash.hexdigest()))
                self._hash, self._left = _new(self._kind, 0), self._part

    def hexdigest(self) -> str:
        last = [bytes.fromhex(self._hash.hexdigest())] if self._left < self._part else []
        digests = self._digests + last
        whole = _new(self._kind, 0)
        whole.update(b"".join(digests))
        return f"{whole.hexdigest()}-{len(digests)}"
