"""The chained hash of a prompt: two prompts share the first k hashes exactly where they share the first k blocks.

A chain starts from a *root*, the hash of everything that shapes a prompt from its first token on: model, adapter, cache
salt, tools, template arguments. The prompt itself is a byte stream, cut into blocks; the hash of a block is H(hash
before it, bytes of the block), so one hash stands for the whole prompt up to there. A last block that is not full has
no hash.

Blocks of text get longer the deeper they are, each a sixteenth at most of what is before it. So how much two prompts
share is known to a few per cent at any depth, and the longest prompt has little more than a hundred blocks: an index of
all prompts pays for each block of each.

The stream of a text is its JSON as the client sent it, without the end of the list or the string: a conversation with
one more message, or a completion's prompt that grew, extends the stream and changes nothing before. Nothing is decoded.
So the cost follows from the number of bytes, whatever is in them, and JSON itself keeps apart what differs. The price:
the same prompt has two chains where two clients write it in two ways (spaces, order of keys, escapes). That costs a
prediction, and only where one conversation is continued by another library.

This runs for every request that the router routes, on its one thread: few Python operations, linear in C, and none
after the first `MAX_TOKENS`.
"""

import re
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from xxhash import xxh3_64_intdigest, xxh3_128_digest

BLOCK_BYTES: Final = 512
"""Bytes of one of the first blocks of a text, and the unit of the others: about as much as eight engine blocks of 16
tokens hold in English."""

MAX_TOKENS: Final = 131_072
"""Tokens of a prompt that are hashed; what comes after them is the same to the router."""

MAX_BYTES: Final = MAX_TOKENS * 4
"""So many tokens of English."""


def _ends() -> Iterator[int]:
    end = 0
    while end <= MAX_BYTES // BLOCK_BYTES:
        yield end
        end += max(1, (1 << end.bit_length()) // 32)


ENDS: Final = tuple(_ends())
"""Units that the first 0, 1, 2, ... blocks of a text have in all: 0 to 32, 34 to 64, 68 to 128, and so on."""

MAX_BLOCKS: Final = len(ENDS) - 1
"""Of a text."""

MAX_ATTACHMENTS: Final = 256
"""Images, sounds and files of a prompt that are recognised; further ones are text."""

_BORDERS: Final = tuple(pairwise(BLOCK_BYTES * end for end in ENDS))
_STRIDE: Final = 4096
"""Bytes from one look for an attachment to the next: none that is longer than this and a bit is overlooked."""

_encoded: Final = re.compile(rb"(?:[\w+=-]|\\?/){64}", re.ASCII).match
"""Base64, in either alphabet, and with `/` escaped or not."""

_attached: Final = re.compile(rb'"data:|(?<="data":)"|(?<="data": )"').match
"""The quote before a data URL, or before the bytes of a sound."""


def root_hash(
    model: str, *, adapter: str = "", salt: str = "", shape: Mapping[str, bytes] | None = None, kind: str = "text"
) -> int:
    """Where a chain starts.

    `shape`: further fields of the request, as JSON, that change the prompt from its beginning on, such as `tools`.
    `kind`: "text" or "tokens", or any other name, for streams that must never be mistaken for one another.
    """
    # Each with the hash so far as its seed: no text imitates the border between two of them.
    root = 0
    for field in (kind, model, adapter, salt):
        root = xxh3_64_intdigest(field.encode("utf-8", "surrogatepass"), root)
    if shape:
        for name, value in shape.items():
            root = xxh3_64_intdigest(value, xxh3_64_intdigest(name.encode(), root))
    return root


def text_chain(root: int, stream: bytes) -> list[int]:
    """The chain of a text, at most `MAX_BLOCKS` long."""
    return _chain(root, stream, _BORDERS)


def token_chain(root: int, ids: Sequence[int], block_size: int) -> list[int]:
    """The chain of token ids, one hash for each full block of `block_size` tokens.

    An array has items of type "I". To go on from a known block, pass its hash as `root`. Raises ValueError for an id
    that is not within 0..2**32-1.
    """
    try:
        stream = ids.tobytes() if isinstance(ids, array) else struct.pack(f"<{len(ids)}I", *ids)
    except struct.error as error:
        raise ValueError(f"a token id is not within 0..{2**32 - 1}: {error}") from None
    return _chain(root, stream, pairwise(range(0, len(stream) + 1, 4 * block_size)))


def fold_attachments(text: bytes) -> tuple[bytes, int]:
    """The text with each image, sound or file in it made one block long, and how many there were.

    Its digest stands for it: an image of a megabyte is a thousand tokens or so to the engine, and would be two thousand
    blocks here.
    """
    pieces: list[bytes | memoryview] = []
    taken = seen = 0  # Up to where the text is in `pieces`; up to where its strings were looked at.
    at = _STRIDE
    while at < len(text) and len(pieces) < 2 * MAX_ATTACHMENTS:
        if _encoded(text, at):
            quote, end = text.rfind(b'"', seen, at), text.find(b'"', at)
            if end < 0:
                break
            if quote >= 0 and _attached(text, quote):
                view = memoryview(text)
                pieces += (view[taken : quote + 1], xxh3_128_digest(view[quote:end]) * (BLOCK_BYTES // 16))
                taken = end
            at = seen = end
        at += _STRIDE
    if not pieces:
        return text, 0
    return b"".join((*pieces, memoryview(text)[taken:])), len(pieces) // 2


def _chain(parent: int, stream: bytes, borders: Iterable[tuple[int, int]]) -> list[int]:
    """Of the blocks between these that are full."""
    hashes, view, length = [], memoryview(stream), len(stream)
    for start, end in borders:
        if end > length:
            break
        parent = xxh3_64_intdigest(view[start:end], parent)
        hashes.append(parent)
    return hashes
