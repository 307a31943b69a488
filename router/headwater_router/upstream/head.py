"""What the head of an endpoint's answer may be, and what it says of the body behind it.

llhttp, which httptools wraps, refuses most of what is wrong with a head. What is added: limits, statuses that there are
not, and codings that nobody asked for.
"""

from typing import Final

import httptools

from headwater.http.headers import Headers
from headwater_router.upstream.errors import MalformedAnswerError

MOST_WITHOUT_BODY: Final = 64 * 1024
"""Bytes that may come without one of a body among them: a head, or what stands between chunks and behind the last."""
MOST_HEADERS: Final = 256
MOST_INFORMATIONAL: Final = 16
"""Answers of 1xx before the answer proper."""


def check_coding(headers: Headers) -> None:
    """Raises MalformedAnswerError: a coding of another name would be taken off the headers, and left on the body."""
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings not in ([], [b"chunked"]):
        raise MalformedAnswerError("the endpoint's answer has a transfer-encoding other than chunked")


def check_size(headers: Headers) -> None:
    """Raises MalformedAnswerError."""
    if sum(len(name) + len(value) for name, value in headers) > MOST_WITHOUT_BODY:
        raise too_large()


def check_informational(status: int, count: int) -> None:
    """`count`: of those before the answer, with this one. Raises MalformedAnswerError."""
    if status == 101:
        raise MalformedAnswerError("the endpoint changed to a protocol that nobody asked for")
    if count > MOST_INFORMATIONAL:
        raise MalformedAnswerError(f"the endpoint announced its answer more than {MOST_INFORMATIONAL} times")


def too_large() -> MalformedAnswerError:
    return MalformedAnswerError(f"the endpoint's answer has a head or trailers above {MOST_WITHOUT_BODY // 1024} KiB")


def malformed(error: Exception) -> MalformedAnswerError:
    """What an exception of the parser says of the answer. Raises what one of our own methods raised by mistake."""
    cause = error.__context__
    if isinstance(cause, MalformedAnswerError):
        return cause
    if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(cause, httptools.HttpParserError):
        raise cause or error
    return MalformedAnswerError(f"the endpoint's answer is not HTTP: {error}")
