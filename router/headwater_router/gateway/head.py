"""Heads on their way through: which headers go to the endpoint, and which of its own go to the client."""

import math
import time
from email.utils import parsedate_to_datetime
from typing import Final

from headwater.backends.dialects import Translation
from headwater.http.headers import Headers, end_to_end
from headwater.http.request import Request
from headwater_router.admission.keys import CREDENTIALS
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.gateway.body import Body, asking_for_usage, with_model
from headwater_router.gateway.form_body import FormBody
from headwater_router.gateway.slo import SLO_HEADERS
from headwater_router.gateway.translating import translated

RANK_HEADERS: Final = frozenset(
    (b"x-data-parallel-rank", b"x-override-routed-dp-rank", b"x-override-disagg-prefill-dp-rank")
)
"""By which servers are told which of their data-parallel engines is to answer: that is for the router to say."""
_NOT_FORWARDED: Final = (
    SLO_HEADERS | RANK_HEADERS | {b"host", b"content-length", b"accept-encoding", b"expect", b"x-request-id"}
)
"""accept-encoding: the usage is read off the answer's last bytes, and token streams gain nothing from compression."""
_WITH_USAGE: Final = frozenset(("/v1/chat/completions", "/v1/completions"))
"""Paths whose streams tell the usage only if they are asked to."""
_NOT_PASSED_ON: Final = frozenset(
    (b"x-request-id", b"x-headwater-endpoint", b"x-headwater-decision", b"access-control-allow-origin",
     b"access-control-allow-credentials", b"access-control-allow-headers", b"access-control-allow-methods",
     b"access-control-allow-private-network", b"access-control-expose-headers", b"access-control-max-age")
)  # fmt: skip
"""The router sets them itself: which pages may read an answer, too, is for it to say. An engine behind it lets all."""
_JSON: Final = b"content-type: application/json"
_LONGEST_WAIT: Final = 3600.0


class RequestHead:
    """The head of a request for whichever endpoint it goes to."""

    __slots__ = (
        "_asks",
        "_body",
        "_id",
        "_keys",
        "_method",
        "_model",
        "_path",
        "_rest",
        "translation",
        "usage_is_ours",
    )

    def __init__(self, request: Request, body: Body | FormBody | None, model: str, *, keys_are_ours: bool) -> None:
        """`body`: what is known of it; None where it names no model. `model`: that its client asks for.
        `keys_are_ours`: the client's key is for this router, and no endpoint gets to see it."""
        lines = [b"%b HTTP/1.1" % request.target, b"x-request-id: " + request.id]
        keys = []
        if isinstance(body, Body):  # It has been read as JSON, and SGLang takes none that is not said to be.
            lines.append(_JSON)
        for name, value in end_to_end(request.headers):
            if name in CREDENTIALS:
                keys.append(b"%b: %b\r\n" % (name, value))
            elif name not in _NOT_FORWARDED and not (name == b"content-type" and isinstance(body, Body)):
                lines.append(b"%b: %b" % (name, value))
        self._method = request.method
        self._rest = b"\r\n".join(lines)
        self._keys = b"" if keys_are_ours else b"".join(keys)
        self._body = body
        self._asks = request.path in _WITH_USAGE and isinstance(body, Body) and body.stream
        self.usage_is_ours = False
        """The endpoint that was asked last was asked for the usage by us."""
        self.translation: Translation | None = None
        """Of what it answers, where it speaks a dialect."""
        self._path, self._id, self._model = request.path, request.id.decode("latin-1"), model

    def of(self, endpoint: Endpoint, upstream_model: str, data: bytes, rank: int | None = None) -> tuple[bytes, bytes]:
        """Head and body for an endpoint, of the body as it is. `upstream_model`: the name by which it knows the model,
        if that is another. `rank`: as in `Target`. Raises BadRequestError for what its server cannot do."""
        asking = None
        match self._body:
            case Body() as body:
                if upstream_model:
                    data = with_model(data, body, upstream_model)
                if self._asks and endpoint.backend.streams_usage:
                    asking = asking_for_usage(data, body)
            case FormBody() as form if upstream_model:
                data = form.with_model(data, upstream_model)
        self.usage_is_ours = asking is not None
        data = asking or data
        self.translation = None
        dialect = endpoint.backend.dialect
        if dialect is not None and (not dialect.in_vllms_words or self._is_to_be_put):
            done = translated(dialect, self._path, data, self._model, self._id)
            if done is not None:
                data, self.translation = done
        own = endpoint.key.header or self._keys
        if rank is not None and (name := endpoint.backend.rank_header) is not None:
            own += b"%b: %d\r\n" % (name.encode(), rank)
        head = b"%b %b%b\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n" % (
            self._method, endpoint.path, self._rest, endpoint.authority, own, len(data)
        )  # fmt: skip
        return head, data

    @property
    def _is_to_be_put(self) -> bool:
        return isinstance(self._body, Body) and self._body.is_to_be_put

    def forget_body(self) -> None:
        """What is known of it keeps all of it in memory."""
        self._body = None


def answer_head(headers: Headers, longest_wait: float | None) -> Headers:
    """What of an endpoint's headers goes to the client. `longest_wait`: seconds for Retry-After, instead of its own."""
    kept = [each for each in headers if each[0] not in _NOT_PASSED_ON]
    if longest_wait:
        kept = [each for each in kept if each[0] != b"retry-after"]
        kept.append((b"retry-after", b"%d" % math.ceil(longest_wait)))
    return kept


def retry_after(headers: Headers) -> float | None:
    """Seconds; None where there is no such header, or it makes no sense."""
    for name, value in headers:
        if name == b"retry-after":
            return _seconds(value.decode("latin-1").strip())
    return None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else None
