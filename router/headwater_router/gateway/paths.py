"""What is forwarded, and how the model is found that a request asks for."""

import re
from collections import OrderedDict
from enum import Enum
from typing import Final, NamedTuple

from headwater.openai.errors import NotFoundError
from headwater_router.endpoints.endpoint import Endpoint


class Form(Enum):
    """Where a request says which model it wants."""

    JSON = "json"
    """In the field `model` of its body."""
    MULTIPART = "multipart"
    """In the part of that name of a form: see `form_body`."""
    RESPONSE = "response"
    """Nowhere: it names a response, which is where it was made."""


FORWARDED: Final[dict[str, Form]] = dict.fromkeys(
    (
        "/v1/chat/completions",
        "/v1/chat/completions/render",
        "/v1/completions",
        "/v1/completions/render",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/audio/speech",
        "/score",
        "/rerank",
        "/pooling",
        "/classify",
        "/tokenize",
        "/detokenize",
    ),
    Form.JSON,
) | dict.fromkeys(("/v1/audio/transcriptions", "/v1/audio/translations"), Form.MULTIPART)

_RESPONSE: Final = re.compile(r"/v1/responses/([\w.-]{1,128})(?:/cancel|/input_items)?")
_RESPONSE_ID: Final = re.compile(rb'"id" ?: ?"(resp_[\w.-]{1,123})"')
_MOST_RESPONSES: Final = 100_000


def form_of(path: str) -> Form | None:
    """None: the path is not forwarded."""
    found = FORWARDED.get(path)
    if found is None and _RESPONSE.fullmatch(path):
        return Form.RESPONSE
    return found


def response_of(path: str) -> str:
    """The response that a path of that form names."""
    found = _RESPONSE.fullmatch(path)
    assert found is not None
    return found[1]


class Made(NamedTuple):
    """A response, as it was made."""

    endpoint: Endpoint
    model: str
    """As its client called it."""
    key_name: str
    """Of its client's key: nobody else gets to it."""


class Responses:
    """Which endpoint holds which response, by what passed through this router; the latest are remembered."""

    def __init__(self, most: int = _MOST_RESPONSES) -> None:
        self._most = most
        self._made: OrderedDict[str, Made] = OrderedDict()

    def learn(self, beginning: bytes, endpoint: Endpoint, model: str, key_name: str) -> None:
        """`beginning`: of an answer that makes a response, or of its stream. An id stays with whom it was made for
        first, whatever an engine says later."""
        if (found := _RESPONSE_ID.search(beginning)) is not None:
            self._made.setdefault(found[1].decode(), Made(endpoint, model, key_name))
            if len(self._made) > self._most:
                self._made.popitem(last=False)

    def find(self, response: str, key_name: str) -> Made:
        """One that was made for this key. Raises NotFoundError."""
        found = self._made.get(response)
        if found is None or found.key_name != key_name:
            raise NotFoundError(f"No response `{response}` was made through this router.", code="response_not_found")
        return found

    def maker(self, response: str | None, key_name: str) -> Endpoint | None:
        """The endpoint of the response that a request goes on from, if that still takes requests, and was made here.
        Raises NotFoundError for one that was made for another key."""
        if response is None or response not in self._made:
            return None
        endpoint = self.find(response, key_name).endpoint
        return endpoint if endpoint.takes_requests else None
