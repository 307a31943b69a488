"""Token ids of texts that begin as others did: of a conversation's next turn only what is new is tokenized.

Tokenizers take the special tokens out of a text first, and look at what is between two of them by itself. A chat
template puts one at each message. So the ids of a text are those of its segments, each from one special token up to the
next, and a segment that was seen before need not be tokenized again, in whichever conversation it was.

That is so by construction for special tokens that take no spaces with them and are not normalized. It is tried out
when a tokenizer is loaded, and again on one text of `_TRIED_EACH`: where it turns out not to be so, texts are tokenized
whole from then on, and the log says so.
"""

import re
import threading
from array import array
from collections import OrderedDict
from itertools import count, pairwise
from typing import Any, Final

import structlog
from tokenizers import Tokenizer
from xxhash import xxh3_128_intdigest

log = structlog.get_logger(__name__)

_MOST_BYTES: Final = 64 << 20
"""Of ids that are kept, at four bytes each."""
_MOST_KEPT: Final = 100_000
"""Segments."""
_MOST_SEGMENTS: Final = 4096
"""Of a text; one with more is tokenized whole."""
_TRIED_EACH: Final = 256
_TRIED: Final = (
    "Hello, world",
    " two  spaces ",
    "line\n\n\nline\n",
    "naïve 日本語 🙂",
    "",
    "\t1234567.89",
    '{"a": [1, 2]}',
)
"""Texts with all that tokenizers treat in ways of their own at the beginning or the end."""


class SegmentedTokenizer:
    """For several threads. Its work is done without the interpreter's lock."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._border = _border(tokenizer)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._texts = count(1)
        if self._border is not None and not self._separable():
            self._border = None

    @property
    def incremental(self) -> bool:
        return self._border is not None

    def encode(self, text: str, *, add_special_tokens: bool) -> "array[int]":
        """With the tokens that the tokenizer itself puts around a text, such as one for its beginning, or without."""
        border = self._border
        if add_special_tokens or border is None:
            return self._whole(text, add_special_tokens)
        segments = _split(border, text)
        if len(segments) > _MOST_SEGMENTS:
            return self._whole(text, False)
        ids = array("I", b"".join(self._of_segments(segments)))
        if next(self._texts) % _TRIED_EACH == 0 and ids != self._whole(text, False):
            log.error("a text has other token ids than its parts; it is tokenized whole from now on")
            self._border = None
            return self._whole(text, False)
        return ids

    def _whole(self, text: str, add_special_tokens: bool) -> "array[int]":
        # Of the two ways to encode, this one lets other threads go on.
        return array("I", self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def _of_segments(self, segments: list[str]) -> list[bytes]:
        keys = [xxh3_128_intdigest(segment.encode("utf-8", "surrogatepass")) for segment in segments]
        found: dict[int, bytes] = {}
        with self._lock:
            for key in keys:
                if (ids := self._kept.get(key)) is not None:
                    self._kept.move_to_end(key)
                    found[key] = ids
        new = {key: segment for key, segment in zip(keys, segments, strict=True) if key not in found}
        if new:
            encoded = self._tokenizer.encode_batch_fast(list(new.values()), add_special_tokens=False)
            made = {key: array("I", each.ids).tobytes() for key, each in zip(new, encoded, strict=True)}
            found |= made
            self._keep(made)
        return [found[key] for key in keys]

    def _keep(self, made: dict[int, bytes]) -> None:
        with self._lock:
            for key, ids in made.items():
                if key not in self._kept:
                    self._kept[key] = ids
                    self._bytes += len(ids)
            while self._bytes > _MOST_BYTES or len(self._kept) > _MOST_KEPT:
                self._bytes -= len(self._kept.popitem(last=False)[1])

    def _separable(self) -> bool:
        assert self._border is not None
        special = [each.content for each in _plain(self._tokenizer)][:8]
        for number, text in enumerate(_TRIED):
            joined = text + "".join(
                token + _TRIED[(number + place) % len(_TRIED)] for place, token in enumerate(special)
            )
            parts = self._tokenizer.encode_batch_fast(_split(self._border, joined), add_special_tokens=False)
            if [each for part in parts for each in part.ids] != list(self._whole(joined, False)):
                return False
        return True


def _plain(tokenizer: Tokenizer) -> list[Any]:
    """Special tokens that end whatever is before them, and begin what is behind."""
    return [
        token
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.special
        and token.content
        and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    ]


def _border(tokenizer: Tokenizer) -> "re.Pattern[str] | None":
    contents = sorted({token.content for token in _plain(tokenizer)}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, contents))) if contents else None


def _split(border: "re.Pattern[str]", text: str) -> list[str]:
    starts = [0, *(match.start() for match in border.finditer(text) if match.start()), len(text)]
    return [text[start:end] for start, end in pairwise(starts)]
