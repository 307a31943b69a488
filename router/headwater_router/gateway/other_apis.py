"""Which requests of other APIs are made chat completions, and what is kept of their answers here.

An endpoint of a server that has the API itself is asked in it, as the request came, if all endpoints of the model are.
A response that was kept here is known to none of them.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from headwater.apis import Exchange
from headwater.apis.messages import CountTokens, Messages
from headwater.apis.reading import check_size
from headwater.apis.responses import Responses
from headwater.apis.responses.stored import Stored
from headwater.http.answering import Answering
from headwater.http.replies import answer_json
from headwater.http.request import Request
from headwater.openai.errors import BadRequestError
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.gateway.body import Body, read_body
from headwater_router.gateway.paths import response_of

_RESPONSES, _MESSAGES = "/v1/responses", "/v1/messages"
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.json.Encoder().encode


class OtherAPIs:
    def __init__(self) -> None:
        self.stored = Stored()

    def exchange(self, request: Request, body: Body, endpoints: Iterable[Endpoint], owner: str) -> Exchange | None:
        """Of a request at one of `APIS` that is to be a chat completion; None: it goes as it came.

        Raises BadRequestError, and NotFoundError for a response that is not the owner's to go on from.

        `endpoints`: of its model. `owner`: the name of its client's key.
        """
        path = request.path
        backends = {endpoint.backend for endpoint in endpoints}
        if backends and all(path in each.apis for each in backends) and not self._goes_on(body, owner):
            return None
        check_size(request.body)
        try:
            given = _decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
        if path == _RESPONSES:
            return Responses(given, self.stored, owner)
        return Messages(given) if path == _MESSAGES else CountTokens(given)

    def _goes_on(self, body: Body, owner: str) -> bool:
        previous = body.previous_response
        return previous is not None and self.stored.has(previous, owner)

    def answers(self, request: Request, client: Answering, owner: str) -> bool:
        """Whether the response that the path names is kept here; then it is answered."""
        response = response_of(request.path)
        if not self.stored.has(response, owner):
            return False
        if request.path.endswith("/cancel"):
            raise BadRequestError("Only a response that is made in the background can be cancelled.")
        if request.path.endswith("/input_items"):
            answer_json(client, _listed(self.stored.items(response, owner), request.target))
        elif request.method == b"DELETE":
            self.stored.drop(response, owner)
            answer_json(client, {"id": response, "object": "response", "deleted": True})
        else:
            client.answer(200, [(b"content-type", b"application/json")], self.stored.response(response, owner))
        return True


def asked_in_chat(request: Request, exchange: Exchange) -> Body:
    """Make the request that chat completion. What is to be known of its body."""
    request.target, request.path = exchange.asked.encode(), exchange.asked
    request.body = _encode(exchange.chat())
    return read_body(request.body)


def _listed(items: list[dict[str, Any]], target: bytes) -> dict[str, Any]:
    """All at once, the newest first, if nothing else is asked for."""
    named = [{"id": f"item_{number}", **item} for number, item in enumerate(items)]
    listed = named if b"order=asc" in target else named[::-1]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {"first_id": None, "last_id": None}
    return {"object": "list", "data": listed, "has_more": False, **ends}
