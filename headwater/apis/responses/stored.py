"""Responses that others may go on from: the latest, within a bound, and each for its owner alone.

Of each only what it added to its conversation is kept. Who uses most gives way first, so nobody can push out what
others have by making much.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from headwater.apis.reading import check_size
from headwater.openai.errors import NotFoundError

_MOST_BYTES: Final = 128 << 20
_MOST_TURNS: Final = 2000
"""Of a conversation."""
_OVERHEAD: Final = 1024
"""Bytes that one takes beside its JSON."""
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode

Json = dict[str, Any]


@dataclass(slots=True)
class Made:
    response: Json
    items: list[Json]
    """Its input, without what came before."""
    previous: str | None
    owner: str


@dataclass(slots=True)
class _Kept:
    response: bytes
    """Without its output."""
    items: bytes
    output: bytes
    previous: str | None

    @property
    def size(self) -> int:
        return len(self.response) + len(self.items) + len(self.output) + _OVERHEAD


class Stored:
    def __init__(self, most: int = _MOST_BYTES) -> None:
        """`most`: bytes."""
        self._most = most
        self._kept: dict[str, OrderedDict[str, _Kept]] = {}
        """By owner and id, the longest unused first."""
        self._sizes: dict[str, int] = {}
        """By owner, in bytes."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self._sizes.values())

    @property
    def count(self) -> int:
        return sum(map(len, self._kept.values()))

    def has(self, response: str, owner: str) -> bool:
        return response in self._kept.get(owner, ())

    def add(self, made: Made) -> None:
        """What is larger than all that may be kept is not."""
        response = {name: value for name, value in made.response.items() if name != "output"}
        output = made.response["output"]
        kept = _Kept(_encode(response), _encode(made.items), _encode(output), made.previous)
        if kept.size > self._most // 4:
            return
        self._kept.setdefault(made.owner, OrderedDict())[made.response["id"]] = kept
        self._sizes[made.owner] = self._sizes.get(made.owner, 0) + kept.size
        while self.size > self._most:
            most = max(self._sizes, key=self._sizes.__getitem__)
            self._take(next(iter(self._kept[most])), most)

    def response(self, response: str, owner: str) -> bytes:
        """As JSON. Raises NotFoundError, as do the others."""
        kept = self._of(response, owner)
        return _encode({**_decode(kept.response), "output": Raw(kept.output)})

    def items(self, response: str, owner: str) -> list[Json]:
        """Its input."""
        items: list[Json] = _decode(self._of(response, owner).items)
        return items

    def items_up_to(self, response: str, owner: str) -> list[Json]:
        """All of the conversation, with that response. Raises BadRequestError for one that is too long."""
        turns = [part for kept in self._chain(response, owner) for part in (kept.output, kept.items)]
        check_size(*turns)
        return [item for turn in reversed(turns) for item in _decode(turn)]

    def drop(self, response: str, owner: str) -> None:
        self._of(response, owner)
        self._take(response, owner)

    def _chain(self, response: str, owner: str) -> Iterator[_Kept]:
        """From the last turn to the first."""
        at: str | None = response
        for _ in range(_MOST_TURNS):
            if at is None:
                return
            kept = self._of(at, owner)
            self._kept[owner].move_to_end(at)
            yield kept
            at = kept.previous
        raise _not_found(response)

    def _of(self, response: str, owner: str) -> _Kept:
        found = self._kept[owner].get(response) if owner in self._kept else None
        if found is None:
            raise _not_found(response)
        return found

    def _take(self, response: str, owner: str) -> None:
        self._sizes[owner] -= self._kept[owner].pop(response).size
        if not self._kept[owner]:
            del self._kept[owner], self._sizes[owner]


def _not_found(response: str) -> NotFoundError:
    return NotFoundError(
        f"No response `{response[:80]}` is kept here, or one that it goes on from is not any more.",
        param="previous_response_id",
        code="response_not_found",
    )
