"""Anthropic's messages, /v1/messages, and /v1/messages/count_tokens."""

from typing import Any, Final

from headwater.apis.base import TOKENIZE, BrokenAnswerError, EventStream, Exchange
from headwater.apis.blocks import Answer
from headwater.apis.messages.answer import MessageStream, error_of, message_of
from headwater.apis.messages.request import chat_of
from headwater.apis.names import MESSAGES

_COUNTED: Final = (
    "model",
    "messages",
    "tools",
    "chat_template_kwargs",
    "continue_final_message",
    "add_generation_prompt",
)


class Messages(Exchange):
    names = MESSAGES

    def __init__(self, body: dict[str, Any]) -> None:
        """Raises BadRequestError."""
        self._chat = chat_of(body)
        self._model = str(body.get("model") or "")
        self.streams = bool(self._chat.get("stream"))

    def chat(self) -> dict[str, Any]:
        return self._chat

    def document(self, said: Any) -> dict[str, Any]:
        answer = Answer()
        answer.read(said)
        return message_of(answer, self._model)

    def events(self) -> EventStream:
        return MessageStream(self._model, self.request_id)

    def error(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        return error_of(status, error, self.request_id)


class CountTokens(Exchange):
    """How many tokens a conversation has, as the server counts them that would answer it."""

    names = MESSAGES
    asked = TOKENIZE
    streams = False

    def __init__(self, body: dict[str, Any]) -> None:
        """Raises BadRequestError."""
        chat = chat_of({**body, "max_tokens": 1, "stream": False})
        self._asked = {name: value for name, value in chat.items() if name in _COUNTED}

    def chat(self) -> dict[str, Any]:
        return self._asked

    def document(self, said: Any) -> dict[str, Any]:
        count = said.get("count") if isinstance(said, dict) else None
        if not isinstance(count, int):
            raise BrokenAnswerError("The endpoint did not say how many tokens there are.")
        return {"input_tokens": count}

    def events(self) -> EventStream:
        raise NotImplementedError

    def error(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        return error_of(status, error, self.request_id)
