"""Errors as the OpenAI API answers them: a status, and a body that says what was wrong with which field.

APIError
 ├── BadRequestError 400
 ├── AuthenticationError 401
 ├── PermissionDeniedError 403
 ├── NotFoundError 404
 │    └── ModelNotFoundError
 ├── MethodNotAllowedError 405
 ├── RequestTimeoutError 408
 ├── RequestTooLargeError 413
 ├── UnsupportedMediaTypeError 415
 ├── RateLimitError 429
 ├── HeadersTooLargeError 431
 ├── InternalServerError 500
 ├── BadGatewayError 502
 ├── ServiceUnavailableError 503
 └── GatewayTimeoutError 504
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from headwater.openai.absent import absence
from headwater.validation import field_path, finding

_MOST_LEVELS: Final = 200
"""Of a body: pydantic's own bound."""


class APIError(Exception):
    """What a client did not get, and why. Raised anywhere; answered by the HTTP front as `status` and `body()`."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`param`: the request's field, if one is to blame. `retry_after`: seconds, for the Retry-After header.
        `headers`: further ones of the answer, named in lower case.
        """
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self._headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Of the answer, beside its content type; named in lower case."""
        if self.retry_after is None:
            return dict(self._headers)
        # Rounded up: whoever comes a moment too early is refused once more.
        return {**self._headers, "retry-after": str(max(1, math.ceil(self.retry_after)))}


class BadRequestError(APIError):
    """The request cannot be served as it is, now or later."""

    status = 400
    type = "invalid_request_error"


class AuthenticationError(APIError):
    """Nobody knows who asks: no key, or one that does not count."""

    status = 401
    type = "invalid_request_error"


class PermissionDeniedError(APIError):
    """Who asks is known, and may not have this."""

    status = 403
    type = "invalid_request_error"


class NotFoundError(APIError):
    """There is nothing at this path."""

    status = 404
    type = "invalid_request_error"

    @classmethod
    def at(cls, path: str, known: Iterable[str], who: str) -> "NotFoundError":
        """Names the path that was meant, where one is like it: a base URL without its /v1 is what happens most; or what
        `who`, "engine" or "router", does not do."""
        if (missing := absence(path, who)) is not None:
            return cls(missing)
        ends = [each for each in known if each.endswith(path) and path.strip("/")]
        close = ends or difflib.get_close_matches(path, list(known), n=1, cutoff=0.8)
        return cls(f"There is nothing at {path}{f'; did you mean {close[0]}?' if close else '.'}")


class ModelNotFoundError(NotFoundError):
    """No one here serves the model that was asked for."""

    def __init__(self, model: str, served: Collection[str] = ()) -> None:
        hint = f" Served here: {', '.join(sorted(served))}." if served else ""
        super().__init__(f"The model `{model}` does not exist.{hint}", param="model", code="model_not_found")


class MethodNotAllowedError(APIError):
    """The path exists, for another HTTP method."""

    status = 405
    type = "invalid_request_error"


class RequestTimeoutError(APIError):
    """The client took too long to send its request."""

    status = 408
    type = "invalid_request_error"


class RequestTooLargeError(APIError):
    """The body is longer than the server reads."""

    status = 413
    type = "invalid_request_error"


class UnsupportedMediaTypeError(APIError):
    """The body is compressed in a way that the server does not know."""

    status = 415
    type = "invalid_request_error"


class RateLimitError(APIError):
    """The client, or everyone together, asks for more than is allowed at this moment."""

    status = 429
    type = "rate_limit_error"


class HeadersTooLargeError(APIError):
    """The request line and headers are longer than the server reads."""

    status = 431
    type = "invalid_request_error"


class InternalServerError(APIError):
    """Our own fault."""


class BadGatewayError(APIError):
    """The engine that was asked broke off before it answered."""

    status = 502


class ServiceUnavailableError(APIError):
    """No engine can take the request at this moment; `retry_after` says when it is worth another try."""

    status = 503


class GatewayTimeoutError(APIError):
    """The engine that was asked did not answer in time."""

    status = 504


def too_deep() -> BadRequestError:
    """Of a body that is JSON, and that nobody reads."""
    return BadRequestError(f"The body has more than {_MOST_LEVELS} levels of lists and objects.", code="invalid_json")


def from_validation_error(error: ValidationError) -> BadRequestError:
    """Say in words what pydantic found wrong; `param` is the first field of them, as in `messages[0].role`."""
    details = [each for each in error.errors(include_url=False) if each["type"] != "default_factory_not_called"]
    if details[0]["type"] == "json_invalid":
        if not details[0]["input"]:
            return BadRequestError("The body is empty; it must be a JSON object.", code="invalid_json")
        if details[0]["ctx"]["error"].startswith("recursion limit exceeded"):
            return too_deep()
        return BadRequestError(f"The body is not valid JSON: {details[0]['ctx']['error']}.", code="invalid_json")
    return BadRequestError(" ".join(map(_sentence, details[:3])), param=field_path(details[0]["loc"]) or None)


def _sentence(detail: ErrorDetails) -> str:
    path = field_path(detail["loc"])
    return f"`{path}`: {finding(detail)}." if path else f"The body: {finding(detail)}."
