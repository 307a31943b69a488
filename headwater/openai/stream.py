"""Server-sent events, as the OpenAI API streams them."""

from typing import Any, Final

import msgspec

from headwater.openai.errors import APIError

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
DONE: Final = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(chunk: msgspec.Struct | dict[str, Any]) -> bytes:
    """One chunk of a stream, ready for the wire."""
    return b"data: %b\n\n" % _encode(chunk)


def error_event(error: APIError) -> bytes:
    """What a stream that has begun can still say of a failure; its status is long sent."""
    return event(error.body())
