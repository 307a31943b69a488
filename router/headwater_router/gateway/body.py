"""A request's body as far as the router reads it, which is little: a few fields, and those as the bytes they came in.

What is in the messages is the engine's business. Reading them into Python objects would cost up to a hundred times
their bytes in CPU and memory, and whoever sends them chooses what. msgspec checks that the whole is JSON, without
making anything of it. It is read once: what the router writes into a body is put between its bytes.

The model that the router decides by must be the one that the engine sees. Where a name is there twice, the last one
counts: for msgspec, for Python's json, and for pydantic, so for all servers that we forward to; escapes in a name
(`"mod\\u0065l"`) are read by all of them.

Some bodies are no JSON by the book, and engines in Python take them all the same: lone surrogates, NaN, a byte order
mark. Of those only what the router must know is read, in a copy in which such things are replaced by others of their
length. They go as they came where any request may go, and the engine judges.
"""

import re
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec import Raw

from headwater.backends.dialects.vllm import OTHERS_WORDS
from headwater.openai.constraint import FIELDS
from headwater.openai.errors import BadRequestError

_MAX_MODEL: Final = 512
_MAX_MODEL_BYTES: Final = 12 * _MAX_MODEL + 2
"""As JSON, where a character takes up to twelve: two escaped surrogates."""
_MAX_OPTIONS: Final = 4096
_MAX_TEXT: Final = 4096
_MAX_FLAG: Final = 64
_MAX_PLACES: Final = 64
_LONGEST_PLACED: Final = _MAX_MODEL_BYTES + _MAX_OPTIONS
_MAX_MARKS: Final = 1 << 20
"""Lists, objects and members. Nested ones are what takes longest to read: beyond the sixteen or so that a processor
keeps in mind, each return from one level to the one above is a jump that it did not foresee."""
_PIECE: Final = 1 << 20
_NONE: Final = Raw()
_TRUE, _FALSE, _NULL = b"true", b"false", b"null"
_UNCERTAIN: Final = b"?"
"""No JSON: stands for a member of which it is not known what it is, or whether it is there."""
_TRUTHS: Final = (True, "true", "t", "yes", "y", "on", "1")
_LIES: Final = (False, "false", "f", "no", "n", "off", "0")
"""As pydantic reads flags, in any case of the letters. To Python, 1 and 1.0 are True."""

_REPLACED: Final = ((b"\\ud", b"\\uf"), (b"\\uD", b"\\uF"), (b"NaN", b"7e7"), (b"Infinity", b"77777e77"))
"""Surrogates by characters that stand alone, and what is no number by one. That is done in strings, too, of which only
a model's name would matter: none is taken that has one of the latter in it."""


class Body(msgspec.Struct, gc=False):
    """Fields of the body as JSON, empty where they are not there. They are views: each keeps all of the body alive."""

    named: Raw = msgspec.field(name="model", default=_NONE)
    streaming: Raw = msgspec.field(name="stream", default=_NONE)
    """In a body that was read: `true`, `false`, or empty."""
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
    extra_key: Raw = _NONE
    response_format: Raw = _NONE
    text: Raw = _NONE
    structured_outputs: Raw = _NONE
    guided_json: Raw = _NONE
    guided_regex: Raw = _NONE
    guided_choice: Raw = _NONE
    guided_grammar: Raw = _NONE
    json_schema: Raw = _NONE
    regex: Raw = _NONE
    ebnf: Raw = _NONE
    grammar: Raw = _NONE
    enable_thinking: Raw = _NONE
    no_stop_trim: Raw = _NONE
    stop_regex: Raw = _NONE

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

    @property
    def is_to_be_put(self) -> bool:
        """Whether it may say what form the answer is to have, in any dialect's words, or has a field that is no word of
        vLLM's."""
        return any(_to_be_put(self))

    def outline(self) -> "Body":
        """What is to be known of it while it is sent, as copies, which keep nothing of it alive."""
        form = Raw(_UNCERTAIN) if self.is_to_be_put else _NONE
        return Body(self.named.copy(), self.streaming.copy(), self.stream_options.copy(), response_format=form)


_to_be_put: Final = attrgetter(*FIELDS, *OTHERS_WORDS)
_decode: Final = msgspec.json.Decoder(Body).decode
_name: Final = msgspec.json.Decoder(str | None).decode
_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_options: Final = msgspec.json.Decoder(dict[str, Raw] | None).decode
_encode: Final = msgspec.json.Encoder().encode
_value: Final = msgspec.json.Decoder().decode
_opening: Final = re.compile(rb"[^{]*+(?P<brace>\{)\s*+(?P<empty>\})?").match
_colon: Final = re.compile(rb"\s*+:\s*+").match
_ESCAPED_LETTERS: Final = (b"\\u004", b"\\u005", b"\\u006", b"\\u007")


def read_body(data: bytes) -> Body:
    """Raises BadRequestError for what no engine would take: no JSON object, or a `model` that is no name."""
    if len(data) > _MAX_MARKS:  # Each takes a byte.
        _check_marks(data)
    try:
        body = _decode(data)
    except msgspec.ValidationError:
        raise BadRequestError("The body must be a JSON object.") from None
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        body = _read_leniently(data, str(error))
    if body.named:
        _check_model(body.named)
    if body.streaming and bytes(body.streaming) not in (_TRUE, _FALSE):
        body.streaming = _flag(body.streaming)
    return body


def with_model(data: bytes, body: Body, name: str) -> bytes:
    """The body with this model in the place of its own, or of none. All other values stay as they are."""
    return _with(data, b"model", body.named, _encode(name))


def with_cache_salt(data: bytes, body: Body, salt: str) -> bytes:
    """The body with this `cache_salt`, whatever its client sent."""
    return _with(data, b"cache_salt", body.cache_salt, _encode(salt))


def completed(data: bytes, body: Body, *, model: str | None, salt: str | None) -> bytes:
    """With what the client was to leave out, or left out, and `body` as if it had been read from that.

    It is not read again: of what is new it has copies, and of all else the views of `data`.
    """
    if model is not None:
        data, body.named = with_model(data, body, model), Raw(_encode(model))
    if salt is not None:
        data, body.cache_salt = with_cache_salt(data, body, salt), Raw(_encode(salt))
    return data


def asking_for_usage(data: bytes, body: Body) -> bytes | None:
    """The body of a streamed request, asking for the usage at the end. None where it is not streamed, or asks already.

    The client's other settings are kept, if they are settings.
    """
    if not body.stream:
        return None
    options = _options_in(body.stream_options)
    if (asked := options.get("include_usage")) is not None and _small(asked) in _TRUTHS:
        return None
    return _with(data, b"stream_options", body.stream_options, _encode({**options, "include_usage": True}))


def _check_marks(data: bytes) -> None:
    """Raises BadRequestError. Those in texts count, too: to tell them apart is to read it."""
    marks = 0
    for start in range(0, len(data), _PIECE):
        end = start + _PIECE
        marks += data.count(b"[", start, end) + data.count(b"{", start, end) + data.count(b":", start, end)
        if marks > _MAX_MARKS:
            raise BadRequestError(f"The body has more than {_MAX_MARKS:,} opening brackets and braces, and colons.")


def _too_deep() -> BadRequestError:
    return BadRequestError("The body is not valid JSON that is read here: it is nested too deep.", code="invalid_json")


def _read_leniently(data: bytes, fault: str) -> Body:
    """What the router must know of a body that is no JSON for msgspec, which said why. Raises BadRequestError."""
    for found, replacement in _REPLACED:
        data = data.replace(found, replacement)
    try:
        body = _decode(data.removeprefix(b"\xef\xbb\xbf"))
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequestError(f"The body is not valid JSON: {fault}.", code="invalid_json") from None
    for name, raw in (("model", body.named), ("previous_response_id", body.previous_response_id)):
        if any(replacement in bytes(raw) for _, replacement in _REPLACED):
            raise BadRequestError(f"The body is not valid JSON, and its `{name}` is not certain.", code="invalid_json")
    # Copies, for these are views of the changed body.
    read = body.outline()
    read.previous_response_id = body.previous_response_id.copy()
    read.cache_salt = Raw(_UNCERTAIN)
    if any(replacement in bytes(read.stream_options) for _, replacement in _REPLACED):
        read.stream_options = Raw(_UNCERTAIN)
    return read


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


def _flag(raw: Raw) -> Raw:
    """As `true`, `false`, or nothing for null. Raises BadRequestError for what no engine takes for one of these."""
    value = _small(raw)
    if value in _TRUTHS:
        return Raw(_TRUE)
    if value in _LIES:
        return Raw(_FALSE)
    if bytes(raw) == _NULL:
        return _NONE
    found = bytes(memoryview(raw)[:40]).decode("utf-8", "replace")
    raise BadRequestError(f"`stream` must be true or false, found {found}.", param="stream")


def _small(raw: Raw) -> Any:
    """The value of a flag, text in lower case. None for what is too long for one, and what cannot be read."""
    try:
        value = _value(raw) if len(raw) <= _MAX_FLAG else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value.lower() if isinstance(value, str) else value


def _options_in(raw: Raw) -> dict[str, Raw]:
    """Empty where there are none, or too many, or something else."""
    try:
        return (_options(raw) if 0 < len(raw) <= _MAX_OPTIONS else None) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _with(data: bytes, name: bytes, given: Raw, value: bytes) -> bytes:
    """With this member. `given`: the value of its own, if it has one."""
    if not given:
        return _added(data, name, value)
    if (place := _place(data, name, given)) is None:
        return _appended(data, name, value)
    return b"".join((memoryview(data)[:place], value, memoryview(data)[place + len(given) :]))


def _place(data: bytes, name: bytes, given: Raw) -> int | None:
    """Where a member's value begins. None where that is not certain: names may be escaped, and may stand further in."""
    value, key = bytes(given), b'"%b"' % name
    if len(value) > _LONGEST_PLACED or value == _UNCERTAIN or any(each in data for each in _ESCAPED_LETTERS):
        return None
    found, at = None, data.find(key)
    for _ in range(_MAX_PLACES):
        if at < 0:
            return found
        start, at = at, data.find(key, at + len(key))
        # No text can look like a name: there the quotes are escaped.
        colon = _colon(data, start + len(key)) if data[start - 1 : start] != b"\\" else None
        if colon is not None and data.startswith(value, colon.end()):
            if found is not None:
                return None
            found = colon.end()
    return None


def _added(data: bytes, name: bytes, value: bytes) -> bytes:
    """With a member more, which the object does not have yet."""
    match = _opening(data)
    assert match is not None  # It was read as an object.
    start = match.end("brace")
    comma = b"" if match["empty"] else b","
    return b"".join((data[:start], b'"', name, b'":', value, comma, memoryview(data)[start:]))


def _appended(data: bytes, name: bytes, value: bytes) -> bytes:
    """With a further member, which counts for the one of that name that it has: the last one does."""
    end = data.rindex(b"}")
    return b"".join((memoryview(data)[:end], b',"', name, b'":', value, memoryview(data)[end:]))
