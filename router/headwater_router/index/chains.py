"""Chains of token ids that begin as others did: of a conversation's next turn only what is new is hashed.

A chain has a hash for each 16 tokens, and each costs Python a call: of 100,000 tokens that is more than to decode and
render them. So they are looked up in pieces of 256, each known by the hash before it and a digest of its ids.
"""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from xxhash import xxh3_128_intdigest

from headwater.prefix import token_chain
from headwater_router.index.folds import KEY_TOKENS

_PIECE: Final = 256 * KEY_TOKENS
"""Tokens."""
_MOST_KEPT: Final = 8192
"""Pieces: 33 million tokens, in some 20 MB."""


class KnownChains:
    """For several threads."""

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[int, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, root: int, ids: Sequence[int]) -> list[int]:
        """`headwater.prefix.token_chain` of them, in spans of `KEY_TOKENS`; raises what that does.

        Only arrays are looked up: a tokenizer's ids. Those that a client sent cost more to read than to hash.
        """
        if not isinstance(ids, array):
            return token_chain(root, ids, KEY_TOKENS)
        chain: list[int] = []
        whole = len(ids) - len(ids) % _PIECE
        with memoryview(ids) as view:
            for start in range(0, whole, _PIECE):
                key = xxh3_128_intdigest(view[start : start + _PIECE], root)
                chain += self._of_piece(key, root, ids[start : start + _PIECE])
                root = chain[-1]
        return chain + token_chain(root, ids[whole:], KEY_TOKENS)

    def _of_piece(self, key: int, root: int, ids: "array[int]") -> "array[int]":
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
        made = array("Q", token_chain(root, ids, KEY_TOKENS))
        with self._lock:
            self._kept[key] = made
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made
