"""Events of a stream that differ in one text only, as nearly all do: what is around it is encoded once.

data: {...,"choices":[{"index":0,"delta":{"content":  "the text"  },"finish_reason":null}]}
'------------------- before -----------------------'            '------- behind ---------'
"""

from typing import Final

import msgspec

_encode = msgspec.json.Encoder().encode

STAND_IN: Final = "\0"
_WRITTEN: Final = _encode(STAND_IN)


class Saying:
    """Writes such events."""

    __slots__ = ("_before", "_behind")

    def __init__(self, example: bytes) -> None:
        """`example`: one of them, with STAND_IN for its text, behind which nothing is of others' choice."""
        self._before, _, self._behind = example.rpartition(_WRITTEN)

    def __call__(self, text: str) -> bytes:
        return self._before + _encode(text) + self._behind
