"""Whoever answers a request writes to one of these: the client's connection, or what changes what it gets."""

from typing import Protocol

from headwater.http.headers import Headers


class Answering(Protocol):
    """See `AnswerWriter`, which is one, for what each is."""

    @property
    def answer_began(self) -> bool: ...

    @property
    def write_paused(self) -> bool: ...

    @property
    def left(self) -> bool: ...

    def begin(self, status: int, headers: Headers) -> None: ...

    def write(self, piece: bytes) -> bool: ...

    def relay(self, piece: bytes) -> None: ...

    def end(self, piece: bytes = b"") -> None: ...

    def answer(self, status: int, headers: Headers, body: bytes) -> None: ...

    async def drained(self) -> None: ...
