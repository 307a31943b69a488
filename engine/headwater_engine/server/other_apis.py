"""/v1/responses and /v1/messages: requests that are answered as chats, by the same code as the gateway's.

Responses are kept in this process, for whoever knows their names: the engine knows no keys.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Final

from headwater.apis.base import CHAT
from headwater.http.answering import Answering
from headwater.http.exchanges import COUNT_TOKENS, MESSAGES, RESPONSES, Exchanges, ask_in_chat
from headwater.http.replies import answer_error
from headwater.http.request import Request
from headwater.http.retelling import Retelling
from headwater.http.shapes import tell
from headwater.openai.errors import APIError, MethodNotAllowedError

PATHS: Final = (RESPONSES, MESSAGES, COUNT_TOKENS)
_RESPONSE: Final = re.compile(r"/v1/responses/([\w.-]{1,128})(/cancel|/input_items)?")
_METHODS: Final = {"": (b"GET", b"DELETE"), "/input_items": (b"GET",), "/cancel": (b"POST",)}
_EVERYBODY: Final = ""

Ask = Callable[[Request, Answering], Awaitable[None]]
"""Answers a request of the engine's own API."""


class OtherAPIs:
    def __init__(self, chat: Ask, tokenize: Ask) -> None:
        self._chat = chat
        self._tokenize = tokenize
        self._exchanges = Exchanges()

    async def ask(self, request: Request, client: Answering) -> None:
        """A request at one of PATHS; what goes wrong is answered, too, in the shape of that path."""
        path = request.path
        try:
            exchange = self._exchanges.read(request, _EVERYBODY)
            ask_in_chat(request, exchange)
        except APIError as error:
            tell(client, path, error, request.id)
            return
        retelling = Retelling(client, exchange)
        try:
            await (self._chat if exchange.asked == CHAT else self._tokenize)(request, retelling)
        except APIError as error:
            answer_error(retelling, error)

    def answers(self, request: Request, client: Answering) -> bool:
        """Whether the path names a response; then it is answered. Raises NotFoundError or MethodNotAllowedError."""
        found = _RESPONSE.fullmatch(request.path)
        if found is None:
            return False
        if request.method not in _METHODS[found[2] or ""]:
            raise MethodNotAllowedError(f"{request.method.decode('latin-1')} is not allowed for {request.path}.")
        self._exchanges.answer_kept(found[1], request, client, _EVERYBODY)
        return True
