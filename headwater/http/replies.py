"""Answers that a server writes itself, in the OpenAI API's shapes."""

from typing import Any, Final

import msgspec

from headwater.http.answering import Answering
from headwater.http.headers import Headers
from headwater.openai.errors import APIError
from headwater.openai.stream import CONTENT_TYPE, error_event

JSON: Final[Headers] = [(b"content-type", b"application/json")]
EVENT_STREAM: Final[Headers] = [(b"content-type", CONTENT_TYPE.encode()), (b"cache-control", b"no-cache")]

_encode = msgspec.json.Encoder().encode


def answer_json(client: Answering, content: Any, status: int = 200, headers: Headers | None = None) -> None:
    client.answer(status, [*JSON, *(headers or [])], _encode(content))


def answer_error(client: Answering, error: APIError) -> None:
    """As an event, where a stream has begun: its status is out."""
    if client.answer_began:
        client.end(error_event(error))
        return
    headers = [(name.encode(), value.encode()) for name, value in error.headers().items()]
    answer_json(client, error.body(), error.status, headers)
