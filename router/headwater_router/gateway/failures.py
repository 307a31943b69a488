"""The one border where the errors of the client's side towards engines become outcomes, and the API's errors."""

from headwater.http.clients import too_many_connections
from headwater.openai.errors import APIError, BadGatewayError, GatewayTimeoutError
from headwater_router.outcome import Outcome
from headwater_router.upstream.errors import (
    AnswerTimeoutError,
    ConnectionLostError,
    ConnectRefusedError,
    ConnectTimeoutError,
    InsecureError,
    OwnLimitError,
    StaleConnectionError,
    StalledError,
    UnreachableError,
    UpstreamError,
)


def lost(message: str) -> APIError:
    return BadGatewayError(message, code="endpoint_lost")


def failure(error: UpstreamError) -> tuple[Outcome, APIError]:
    match error:
        case OwnLimitError():
            return Outcome.UNSENT, too_many_connections()
        case ConnectRefusedError() | ConnectTimeoutError() | UnreachableError() | InsecureError():
            error_ = BadGatewayError(f"No endpoint could be reached: {error}.", code="endpoint_unreachable")
            return Outcome.UNREACHABLE, error_
        case StaleConnectionError():
            return Outcome.STALE, lost("The endpoint broke off before it answered.")
        case ConnectionLostError():
            return Outcome.LOST, lost("The endpoint broke off before it answered.")
        case AnswerTimeoutError():
            late = GatewayTimeoutError("The endpoint did not answer in time.", code="endpoint_timeout")
            return Outcome.TIMED_OUT, late
        case StalledError():
            late = GatewayTimeoutError("The endpoint's answer stood still.", code="endpoint_stalled")
            return Outcome.STALLED, late
        case _:
            odd = BadGatewayError(f"The endpoint's answer makes no sense: {error}.", code="endpoint_malformed")
            return Outcome.FAILED, odd
