"""Bodies that come compressed (`content-encoding`): decoded piece by piece as they come, within bounds.

A few bytes can stand for gigabytes. So what comes out is bounded before it is there: by the largest body that is
allowed, and, beyond a first MiB, by a multiple of what was sent.
"""

import zlib
from typing import IO, Final, cast

import zstandard

from headwater.openai.errors import APIError, BadRequestError, RequestTooLargeError, UnsupportedMediaTypeError

_FREE: Final = 2**20
"""Bytes that may come out of however few."""
_MOST_FROM_ONE: Final = 32
"""Bytes that may come out of one, beyond that. Prompts shrink to a fifth, or a tenth."""
_LARGEST_WINDOW: Final = 2**23
"""Bytes that a zstd decoder may need to look back. It is what RFC 8878 has every decoder support."""
_FRAMED: Final = b"a frame behind the last one"
_FRAME: Final = zstandard.compress(_FRAMED)


class Decoder:
    """Of one body. `_decode` is the codec's own."""

    def __init__(self, most: int) -> None:
        """`most`: bytes that may come out."""
        self._most = most
        self._taken = 0
        self._given = 0

    def decode(self, piece: bytes) -> bytes:
        """What a further piece stands for. Raises RequestTooLargeError, or BadRequestError; there is no way on then."""
        self._taken += len(piece)
        bound = min(self._most, _FREE + _MOST_FROM_ONE * self._taken)
        decoded = self._decode(piece, bound - self._given)
        self._given += len(decoded)
        return decoded

    def finish(self) -> None:
        """All has come. Raises BadRequestError where that is not all."""

    def _decode(self, piece: bytes, room: int) -> bytes:
        raise NotImplementedError

    def _too_large(self) -> APIError:
        if self._most <= _FREE + _MOST_FROM_ONE * self._taken:
            return RequestTooLargeError(
                f"The request body decodes to more than the {self._most / 2**20:g} MiB allowed."
            )
        return RequestTooLargeError(f"The request body decodes to more than {_MOST_FROM_ONE} times its size.")


class _Gzip(Decoder):
    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def _decode(self, piece: bytes, room: int) -> bytes:
        if self._stream.eof:
            raise BadRequestError("The request body goes on behind its gzip stream.")
        try:
            decoded = self._stream.decompress(piece, room + 1)
        except zlib.error as error:
            raise BadRequestError(f"The request body is not valid gzip: {error}.") from None
        if len(decoded) > room:
            raise self._too_large()
        if self._stream.unused_data:
            raise BadRequestError("The request body goes on behind its gzip stream.")
        return decoded

    def finish(self) -> None:
        if not self._stream.eof:
            raise BadRequestError("The request body is not valid gzip: it ends too early.")


class _FullError(Exception):
    """There is more than may be written."""


class _Sink:
    """Where the library writes to. Not the decoder itself: a cycle through the library is never collected."""

    def __init__(self) -> None:
        self.room = 0
        self.written = bytearray()

    def write(self, decoded: bytes) -> int:
        """Called with 128 KiB at most."""
        if len(self.written) + len(decoded) > self.room:
            raise _FullError
        self.written += decoded
        return len(decoded)


class _Zstd(Decoder):
    """The library does not tell whether the last frame is whole. But only behind a whole one another one can begin."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._sink = _Sink()
        library = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._stream = library.stream_writer(cast("IO[bytes]", self._sink))

    def _decode(self, piece: bytes, room: int) -> bytes:
        self._sink.room = room
        try:
            self._stream.write(piece)
        except _FullError:
            raise self._too_large() from None
        except zstandard.ZstdError as error:
            raise BadRequestError(f"The request body is not valid zstd: {error}.") from None
        decoded = bytes(self._sink.written)
        self._sink.written.clear()
        return decoded

    def finish(self) -> None:
        try:
            # In two pieces: within a header that is cut short, the library takes what begins as a frame for one.
            decoded = b"".join(self._decode(piece, len(_FRAMED)) for piece in (_FRAME[:1], _FRAME[1:]))
        except APIError:
            decoded = b""
        if decoded != _FRAMED:
            raise BadRequestError("The request body is not valid zstd: it ends too early.")


_DECODERS: Final[dict[bytes, type[Decoder]]] = {b"gzip": _Gzip, b"x-gzip": _Gzip, b"zstd": _Zstd}


def decoder(coding: bytes, most: int) -> Decoder | None:
    """For a header `content-encoding`; None where it says that nothing is to be done.

    Raises UnsupportedMediaTypeError.
    """
    name = coding.strip().lower()
    if name in (b"", b"identity"):
        return None
    if (kind := _DECODERS.get(name)) is None:
        shown = name[:40].decode("latin-1")
        raise UnsupportedMediaTypeError(f"The content-encoding `{shown}` is not supported: send gzip, zstd or none.")
    return kind(most)
