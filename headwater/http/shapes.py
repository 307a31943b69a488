"""What a server itself says of a failure, in the shape that the clients of a path know."""

from typing import Any, Final

from headwater.apis.messages.answer import error_of
from headwater.http.answering import Answering
from headwater.http.replies import answer_json
from headwater.openai.errors import APIError
from headwater.openai.stream import event

_MESSAGES: Final = "/v1/messages"


def error_in(path: str, status: int, document: dict[str, Any], request_id: bytes) -> dict[str, Any]:
    """`document`: in OpenAI's shape."""
    if not path.startswith(_MESSAGES) or "error" not in document:
        return document
    return error_of(status, document["error"], request_id.decode("latin-1"))


def event_of(path: str, status: int, document: dict[str, Any], request_id: bytes) -> bytes:
    told = event(error_in(path, status, document, request_id))
    return b"event: error\n" + told if path.startswith(_MESSAGES) else told


def tell(client: Answering, path: str, error: APIError, request_id: bytes) -> None:
    """As an event, where a stream has begun: its status is out."""
    if client.answer_began:
        client.end(event_of(path, error.status, error.body(), request_id))
        return
    headers = [(name.encode(), value.encode()) for name, value in error.headers().items()]
    answer_json(client, error_in(path, error.status, error.body(), request_id), error.status, headers)
