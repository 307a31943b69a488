"""Which requests of other APIs are made chat completions, and what is kept of their answers here.

An endpoint of a server that has the API itself is asked in it, as the request came, if all endpoints of the model are.
A response that was kept here is known to none of them.
"""

from collections.abc import Iterable

from headwater.apis import Exchange
from headwater.http.answering import Answering
from headwater.http.exchanges import Exchanges, ask_in_chat
from headwater.http.request import Request
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.gateway.body import Body, read_body
from headwater_router.gateway.paths import response_of


class OtherAPIs:
    def __init__(self) -> None:
        self._exchanges = Exchanges()
        self.stored = self._exchanges.stored

    def exchange(self, request: Request, body: Body, endpoints: Iterable[Endpoint], owner: str) -> Exchange | None:
        """Of a request at one of `APIS` that is to be a chat completion; None: it goes as it came.

        Raises BadRequestError, and NotFoundError for a response that is not the owner's to go on from.

        `endpoints`: of its model. `owner`: the name of its client's key.
        """
        path = request.path
        backends = {endpoint.backend for endpoint in endpoints}
        if backends and all(path in each.apis for each in backends) and not self._goes_on(body, owner):
            return None
        return self._exchanges.read(request, owner)

    def _goes_on(self, body: Body, owner: str) -> bool:
        previous = body.previous_response
        return previous is not None and self.stored.has(previous, owner)

    def answers(self, request: Request, client: Answering, owner: str) -> bool:
        """Whether the response that the path names is kept here; then it is answered."""
        response = response_of(request.path)
        if not self.stored.has(response, owner):
            return False
        self._exchanges.answer_kept(response, request, client, owner)
        return True


def asked_in_chat(request: Request, exchange: Exchange) -> Body:
    """Make the request that chat completion. What is to be known of its body."""
    ask_in_chat(request, exchange)
    return read_body(request.body)
