"""How a request's stay at one endpoint ended. Whoever counts, learns or charges goes by this, and by nothing else.

Two questions are asked of it: may anything be *learned* of the endpoint (only from what was answered),
and whose *fault* was it (`endpoints.breaker` counts the endpoint's, nobody counts the client's)?
"""

from enum import StrEnum


class Outcome(StrEnum):
    ANSWERED = "answered"
    """A whole answer."""
    REFUSED = "refused"
    """The engine said no to this request: a 4xx, of which another engine would say the same."""
    DENIED = "denied"
    """401, 403, 404 or 424: this engine will not, which may be its own fault. Another one may."""
    OVERLOADED = "overloaded"
    """Back-pressure: 429, or 503 with a Retry-After. It works, and wants no more for now."""
    FAILED = "failed"
    """A 5xx, an answer that is not HTTP, or an error event in a stream."""
    UNREACHABLE = "unreachable"
    """No connection: nothing was sent, so nothing was computed."""
    LOST = "lost"
    """The connection broke with the request sent, before the answer or within it."""
    STALE = "stale"
    """A kept connection broke as soon as the request was sent over it: most likely it had been closed before. Or the
    endpoint dies of it at once, which looks the same. Says nothing of the endpoint."""
    STALLED = "stalled"
    """An answer that had begun stood still for too long."""
    TIMED_OUT = "timed_out"
    """The answer did not begin in time."""
    CLIENT_LEFT = "client_left"
    UNSUPPORTED = "unsupported"
    """Its server cannot do what the request asks for, so nothing was sent. Another one may."""
    UNSENT = "unsent"
    """This router's own limits: says nothing of the endpoint."""
