"""A request's body as far as the router reads it, which is little: a few fields, and those as the bytes they came in.

What is in the messages is the engine's business. Reading them into Python objects would cost up to a hundred times
their bytes in CPU and memory, and whoever sends them chooses what. msgspec checks that the whole is JSON, without
making anything of it, in 0.4 to 4 ms a MiB.

The model that the router decides by must be the one that the engine sees. Where a name is there twice, the last one
counts: for msgspec, for Python's json, and for pydantic, so for all servers that we forward to; escapes in a name
(`"mod\\u0065l"`) are read by all of them.

Some bodies are no JSON by the book, and engines in Python take them all the same: lone surrogates, NaN, a byte order
mark. Of those only what the router must know is read, in a copy in which such things are replaced by others of their
length. They go as they came where any request may go, and the engine judges.
"""

import re
from typing import Final

import msgspec
from msgspec import Raw

from headwater.openai.errors import BadRequestError

_MAX_MODEL: Final = 512
_MAX_MODEL_BYTES: Final = 12 * _MAX_MODEL + 2
"""As JSON, where a character takes up to twelve: two escaped surrogates."""
_MAX_OPTIONS: Final = 4096
_MAX_TEXT: Final = 4096
_MAX_LOOSE_BYTES: Final = 1 << 16
_NONE: Final = Raw()

_REPLACED: Final = ((b"\\ud", b"\\uf"), (b"\\uD", b"\\uF"), (b"NaN", b"7e7"), (b"Infinity", b"77777e77"))
"""Surrogates by characters that stand alone, and what is no number by one. That is done in strings, too, of which only
a model's name would matter: none is taken that has one of the latter in it."""


class Body(msgspec.Struct, gc=False):
    """Fields of the body as JSON, empty where they are not there. They are views: each keeps all of the body alive."""

    named: Raw = msgspec.field(name="model", default=_NONE)
    streaming: Raw = msgspec.field(name="stream", default=_NONE)
    stream_options: Raw = _NONE
    messages: Raw = _NONE
    prompt: Raw = _NONE
    input: Raw = _NONE
    system: Raw = _NONE
    instructions: Raw = _NONE
    tools: Raw = _NONE
    functions: Raw = _NONE
    documents: Raw = _NONE
    chat_template: Raw = _NONE
    chat_template_kwargs: Raw = _NONE
    reasoning_effort: Raw = _NONE
    add_special_tokens: Raw = _NONE
    add_generation_prompt: Raw = _NONE
    continue_final_message: Raw = _NONE
    previous_response_id: Raw = _NONE
    cache_salt: Raw = _NONE

    @property
    def model(self) -> str | None:
        return _name(self.named) if self.named else None

    @property
    def stream(self) -> bool:
        return bytes(self.streaming) == b"true"

    @property
    def salt(self) -> str | None:
        return _text(self.cache_salt)

    @property
    def previous_response(self) -> str | None:
        return _text(self.previous_response_id)


_decode: Final = msgspec.json.Decoder(Body).decode
_name: Final = msgspec.json.Decoder(str | None).decode
_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_options: Final = msgspec.json.Decoder(dict[str, Raw] | None).decode
_encode: Final = msgspec.json.Encoder().encode
_opening: Final = re.compile(rb"[^{]*+(?P<brace>\{)\s*+(?P<empty>\})?").match


def read_body(data: bytes) -> Body:
    """Raises BadRequestError for what no engine would take: no JSON object, or a `model` that is no name."""
    try:
        body = _decode(data)
    except msgspec.ValidationError:
        raise BadRequestError("The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        body = _read_leniently(data, str(error))
    if body.named:
        _check_model(body.named)
    return body


def with_model(data: bytes, body: Body, name: str) -> bytes:
    """The body with this model in the place of its own, or of none. All other values stay as they are."""
    value = _encode(name)
    if not body.named:
        return _added(data, b"model", value)
    return _replaced(data, body, "model", value) or _appended(data, b"model", value)


def with_cache_salt(data: bytes, body: Body, salt: str) -> bytes:
    """The body with this `cache_salt`, whatever its client sent."""
    value = _encode(salt)
    # Of a body that was read leniently it is not known whether it has one.
    replaced = _replaced(data, body, "cache_salt", value) if body.cache_salt else None
    return replaced or _appended(data, b"cache_salt", value)


def asking_for_usage(data: bytes, body: Body) -> bytes | None:
    """The body of a streamed request, asking for the usage at the end. None where nothing is to be changed.

    That is so for a request that is not streamed, that asks already, or whose `stream_options` cannot be changed
    surely. Where the client sent some, a second one in front would be undone by it, and one behind is refused by
    strict servers. So the client's is replaced, by one that keeps its other settings.
    """
    if not body.stream:
        return None
    given = body.stream_options
    if not given:
        return _added(data, b"stream_options", b'{"include_usage":true}')
    if len(given) > _MAX_OPTIONS:
        return None
    try:
        options = _options(given) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if "include_usage" in options and bytes(options["include_usage"]) == b"true":
        return None
    return _replaced(data, body, "stream_options", _encode({**options, "include_usage": True}))


def _read_leniently(data: bytes, fault: str) -> Body:
    """What the router must know of a body that is no JSON for msgspec, which said why. Raises BadRequestError."""
    for found, replacement in _REPLACED:
        data = data.replace(found, replacement)
    try:
        body = _decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequestError(f"The body is not valid JSON: {fault}.", code="invalid_json") from None
    if any(replacement in bytes(body.named) for _, replacement in _REPLACED):
        raise BadRequestError("The body is not valid JSON, and its `model` is not certain.", code="invalid_json")
    # Copies, for these are views of the changed body.
    return Body(body.named.copy(), body.streaming.copy(), body.stream_options.copy())


def _text(raw: Raw) -> str | None:
    """None for what is no text, or much too long for one of the fields that are read."""
    try:
        return _name(raw) if 0 < len(raw) <= _MAX_TEXT else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _check_model(raw: Raw) -> None:
    try:
        name = _name(raw) if len(raw) <= _MAX_MODEL_BYTES else ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        name = ""
    if name is not None and not 0 < len(name) <= _MAX_MODEL:
        found = bytes(memoryview(raw)[:40]).decode("utf-8", "replace")
        raise BadRequestError(f"`model` must be a name of 1 to {_MAX_MODEL} characters, found {found}.", param="model")


def _added(data: bytes, name: bytes, value: bytes) -> bytes:
    """With a member more, which the object does not have yet."""
    match = _opening(data)
    assert match is not None  # It was read as an object.
    start = match.end("brace")
    comma = b"" if match["empty"] else b","
    return b"".join((data[:start], b'"', name, b'":', value, comma, memoryview(data)[start:]))


def _appended(data: bytes, name: bytes, value: bytes) -> bytes:
    """With a further member, which counts for one of that name that it may have: the last one does."""
    end = data.rindex(b"}")
    return b"".join((memoryview(data)[:end], b',"', name, b'":', value, memoryview(data)[end:]))


def _replaced(data: bytes, body: Body, name: str, value: bytes) -> bytes | None:
    """With another value for a member that it has. None where that would take reading all of it."""
    # Members that are not among the fields could be millions. Where they are short in all, they are few.
    if len(data) - sum(len(getattr(body, field)) for field in body.__struct_fields__) > _MAX_LOOSE_BYTES:
        return None
    try:
        return _encode({**_members(data), name: Raw(value)})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # It was read leniently.
