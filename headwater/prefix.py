"""The chained hash of a prompt: two prompts share the first k hashes exactly where they share the first k blocks.

A chain starts from a *root*, the hash of everything that shapes a prompt from its first token on: model, adapter, cache
salt, tools, template arguments. The prompt itself becomes a byte stream, cut into blocks of fixed length; the hash of a
block is H(hash before it, bytes of the block), so one hash stands for the whole prompt up to there. A last block that
is not full has no hash.

The stream must keep apart what differs, and keep equal beginnings equal. Lengths written before a text would do only
the first: two messages that share a long document and end in different questions would differ from their first byte
on. So structure is marked by the byte 0xFF and a letter instead. 0xFF occurs nowhere in UTF-8, so no text can imitate
it; token ids, 32 bits each, are separated by 0xFFFFFFFF, which is no token. A conversation with one more message, or
with a longer last one, extends the stream and changes nothing before.

This runs for every request that the router routes, on its one thread: few Python operations, linear in C.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import methodcaller
from typing import Any, Final

import msgspec
from xxhash import xxh3_64_intdigest

BLOCK_BYTES: Final = 512
"""Bytes of one block of text: about as much as eight engine blocks of 16 tokens hold in English."""

_PIECE: Final = 1 << 15
"""Characters handled at once. A second copy of a whole long prompt costs more, in page faults, than its hashing."""

_FIELD: Final = b"\xff"
_MESSAGE: Final = b"\xffM"
_CONTENT: Final = b"\xffC"
_PARTS: Final = b"\xffL"
_TEXT_PART: Final = b"\xffT"
_OTHER_PART: Final = b"\xffP"
_OTHER_FIELDS: Final = b"\xffF"
_TEXT: Final = b"\xffS"
_END_OF_IDS: Final = b"\xff\xff\xff\xff"

_SHAPING_FIELDS: Final = (
    "tools",
    "functions",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_special_tokens",
    "instructions",
    "previous_response_id",
)
"""Fields of a body that change a prompt from its beginning on. What only changes its end is not among them."""

_SHAPING: Final = frozenset(_SHAPING_FIELDS)

_utf8: Final[Callable[[str], bytes]] = methodcaller("encode", "utf-8", "surrogatepass")

# Key order is kept: chat templates print tools with their keys as they came.
_json: Final[Callable[[Any], bytes]] = msgspec.json.Encoder().encode


def root_hash(
    model: str, *, adapter: str = "", salt: str = "", shape: Mapping[str, Any] | None = None, kind: str = "text"
) -> int:
    """Where a chain starts.

    `shape`: further fields of the request that change the prompt from its beginning on, such as `tools`.
    `kind`: "text" or "tokens", or any other name, for streams that must never be mistaken for one another.
    """
    stream = _root_stream(kind, model, adapter, salt)
    return xxh3_64_intdigest(stream + _OTHER_FIELDS + _json(shape) if shape else stream)


@lru_cache(maxsize=1024)
def _root_stream(*fields: str) -> bytes:
    return _FIELD.join([_utf8(field) for field in fields])


def text_chain(root: int, *texts: str) -> list[int]:
    """The chain of texts that stand one after the other, as in a completion request with several prompts."""
    return _chain(root, [piece for text in texts for piece in (_TEXT, *_text_pieces(text))], BLOCK_BYTES)


def token_chain(root: int, ids: Sequence[int], block_size: int) -> list[int]:
    """The chain of token ids, one hash for each full block of `block_size` tokens.

    To go on from a known block, pass its hash as `root`. Raises ValueError for an id that is not within 0..2**32-1.
    """
    return _chain(root, [_pack_ids(ids)], 4 * block_size)


def chat_chain(body: Mapping[str, Any], *, model: str | None = None, adapter: str = "") -> list[int]:
    """The chain of a /v1/chat/completions body, as parsed JSON. Empty where there are no messages to hash.

    `model`: the name to hash instead of the body's, where several names mean the same model.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        return []
    return _chain(_body_root(body, model, adapter, "chat"), _message_pieces(messages), BLOCK_BYTES)


def responses_chain(body: Mapping[str, Any], *, model: str | None = None, adapter: str = "") -> list[int]:
    """The chain of a /v1/responses body; its input is a text or a list of messages and other items."""
    match body.get("input"):
        case str() as text:
            items: list[Any] = [{"role": "user", "content": text}]
        case list() as items:
            pass
        case _:
            return []
    return _chain(_body_root(body, model, adapter, "responses"), _message_pieces(items), BLOCK_BYTES)


def completion_chain(body: Mapping[str, Any], *, model: str | None = None, adapter: str = "") -> list[int]:
    """The chain of a /v1/completions body. Empty for a prompt that is none; the engine will refuse it in words."""
    match body.get("prompt"):
        case str() as text:
            return text_chain(_body_root(body, model, adapter, "text"), text)
        case [str(), *_] as texts if all(isinstance(text, str) for text in texts):
            return text_chain(_body_root(body, model, adapter, "text"), *texts)
        case [int(), *_] as ids:
            lists = [ids]
        case [list(), *_] as lists if all(isinstance(ids, list) for ids in lists):
            pass
        case _:
            return []
    try:
        stream = _END_OF_IDS.join(map(_pack_ids, lists))
    except ValueError:
        return []
    return _chain(_body_root(body, model, adapter, "tokens"), [stream], BLOCK_BYTES)


def _body_root(body: Mapping[str, Any], model: str | None, adapter: str, kind: str) -> int:
    name = model if model is not None else str(body.get("model", ""))
    salt = body.get("cache_salt")
    salt = salt if isinstance(salt, str) else ""
    if _SHAPING.isdisjoint(body):
        return _plain_root(kind, name, adapter, salt)
    shape = {name: value for name in _SHAPING_FIELDS if (value := body.get(name)) is not None}
    return root_hash(name, adapter=adapter, salt=salt, shape=shape, kind=kind)


@lru_cache(maxsize=1024)
def _plain_root(kind: str, model: str, adapter: str, salt: str) -> int:
    return root_hash(model, adapter=adapter, salt=salt, kind=kind)


def _message_pieces(messages: list[Any]) -> list[bytes]:
    """Each message as role, content, then all other fields as JSON. A field that is null is one that is not there."""
    pieces: list[bytes] = []
    for message in messages:  # plain tests: a `match` on mappings takes twice as long
        if not isinstance(message, dict):
            pieces += (_MESSAGE, _OTHER_PART, _json(message))
            continue
        role, content = message.get("role"), message.get("content")
        if isinstance(role, str) and isinstance(content, str):
            pieces += (_MESSAGE, _utf8(role), _CONTENT)
            pieces += _text_pieces(content)
            if len(message) > 2:
                pieces += _other_fields(message, ("role", "content"))
        elif isinstance(role, str) and isinstance(content, list):
            pieces += (_MESSAGE, _utf8(role), _PARTS)
            for part in content:
                pieces += _part_pieces(part)
            pieces += _other_fields(message, ("role", "content"))
        else:
            pieces.append(_MESSAGE)
            pieces += _other_fields(message, ())
    return pieces


def _other_fields(message: dict[str, Any], hashed: tuple[str, ...]) -> tuple[bytes, ...]:
    rest = {name: value for name, value in message.items() if value is not None and name not in hashed}
    return (_OTHER_FIELDS, _json(rest)) if rest else ()


def _part_pieces(part: Any) -> tuple[bytes, ...]:
    match part:
        case {"type": "text", "text": str() as text} if len(part) == 2:
            return (_TEXT_PART, *_text_pieces(text))
        case _:
            return (_OTHER_PART, _json(part))


def _text_pieces(text: str) -> list[bytes]:
    if len(text) <= _PIECE:
        return [_utf8(text)]
    return [_utf8(text[start : start + _PIECE]) for start in range(0, len(text), _PIECE)]


def _pack_ids(ids: Sequence[int]) -> bytes:
    try:
        return struct.pack(f"<{len(ids)}I", *ids)
    except struct.error as error:
        raise ValueError(f"a token id is not within 0..{2**32 - 1}: {error}") from None


def _chain(parent: int, pieces: list[bytes], size: int) -> list[int]:
    if sum(map(len, pieces)) <= _PIECE:
        pieces = [b"".join(pieces)]
    hashes = []
    rest = b""
    for piece in pieces:
        rest += piece
        end = len(rest) - len(rest) % size
        for start in range(0, end, size):
            parent = xxh3_64_intdigest(rest[start : start + size], parent)
            hashes.append(parent)
        rest = rest[end:]
    return hashes
