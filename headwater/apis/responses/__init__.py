"""OpenAI's responses, /v1/responses."""

import uuid
from typing import Any

from headwater.apis.base import EventStream, Exchange
from headwater.apis.blocks import Answer
from headwater.apis.names import RESPONSES
from headwater.apis.responses.answer import finished, response_of
from headwater.apis.responses.request import Request, read
from headwater.apis.responses.stored import Made, Stored
from headwater.apis.responses.stream import ResponseStream


class Responses(Exchange):
    names = RESPONSES

    def __init__(self, body: dict[str, Any], stored: Stored, owner: str) -> None:
        """`owner`: whose responses it may go on from, and who may go on from this one. Raises BadRequestError, and
        NotFoundError where there is no response that it goes on from."""
        self._request: Request = read(body)
        self._stored, self._owner = stored, owner
        before = stored.items_up_to(self._request.previous, owner) if self._request.previous is not None else []
        self._chat = self._request.chat(before)
        self.id = f"resp_{uuid.uuid4().hex}"
        self.streams = self._request.streams

    def chat(self) -> dict[str, Any]:
        return self._chat

    def document(self, said: Any) -> dict[str, Any]:
        answer = Answer()
        answer.read(said)
        return self._keep(finished(response_of(self.id, self._request), answer))

    def events(self) -> EventStream:
        return ResponseStream(response_of(self.id, self._request), self._keep)

    def error(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        return {"error": error}

    def _keep(self, response: dict[str, Any]) -> dict[str, Any]:
        """Before its client sees it: that may go on from it at once."""
        if self._request.store and response["status"] != "failed":
            self._stored.add(Made(response, self._request.items, self._request.previous, self._owner))
        return response
