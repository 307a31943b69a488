"""Requests of other APIs that are made chat completions, and the responses that are kept of them."""

from typing import Any, Final

import msgspec

from headwater.apis import Exchange
from headwater.apis.messages import CountTokens, Messages
from headwater.apis.reading import check_size
from headwater.apis.responses import Responses
from headwater.apis.responses.stored import Stored
from headwater.http.answering import Answering
from headwater.http.replies import JSON, answer_json
from headwater.http.request import Request
from headwater.openai.errors import BadRequestError, too_deep

RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.json.Encoder().encode


class Exchanges:
    """`owner`, wherever it stands: the name of a client's key; nobody else gets to what is kept of it."""

    def __init__(self) -> None:
        self.stored = Stored()

    def read(self, request: Request, owner: str) -> Exchange:
        """A request at one of the three paths. Raises BadRequestError, and NotFoundError for a response that is not the
        owner's to go on from."""
        check_size(request.body)
        try:
            given = _decode(request.body)
        except RecursionError:
            raise too_deep() from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
        exchange: Exchange
        if request.path == RESPONSES:
            exchange = Responses(given, self.stored, owner)
        else:
            exchange = Messages(given) if request.path == MESSAGES else CountTokens(given)
        exchange.request_id = request.id.decode("latin-1")
        return exchange

    def answer_kept(self, response: str, request: Request, client: Answering, owner: str) -> None:
        """What the path asks of a response that is kept. Raises BadRequestError or NotFoundError."""
        if request.path.endswith("/cancel"):
            raise BadRequestError("Only a response that is made in the background can be cancelled.")
        if request.path.endswith("/input_items"):
            answer_json(client, _listed(self.stored.items(response, owner), request.target))
        elif request.method == b"DELETE":
            self.stored.drop(response, owner)
            answer_json(client, {"id": response, "object": "response", "deleted": True})
        else:
            client.answer(200, JSON, self.stored.response(response, owner))


def ask_in_chat(request: Request, exchange: Exchange) -> None:
    """Make the request that chat completion."""
    request.target, request.path = exchange.asked.encode(), exchange.asked
    request.body = _encode(exchange.chat())


def _listed(items: list[dict[str, Any]], target: bytes) -> dict[str, Any]:
    """All at once, the newest first, if nothing else is asked for."""
    named = [{"id": f"item_{number}", **item} for number, item in enumerate(items)]
    listed = named if b"order=asc" in target else named[::-1]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {"first_id": None, "last_id": None}
    return {"object": "list", "data": listed, "has_more": False, **ends}
