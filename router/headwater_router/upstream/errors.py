"""All that can go wrong between the router and an endpoint.

UpstreamError                  no answer, or not a whole one
├── NotConnectedError          there was no connection to send the request over
│   ├── ConnectRefusedError    the host is there, and nobody listens
│   ├── ConnectTimeoutError    no word in time; somebody may still be there, only too busy
│   ├── UnreachableError       no way to the host, or nobody knows its name
│   ├── InsecureError          somebody is there, and no TLS with whom we may trust
│   └── OwnLimitError          this process can open no further connection
├── ConnectionLostError        the connection ended before the answer did
│   └── StaleConnectionError   a kept one, as soon as it was used again
├── AnswerTimeoutError         the first byte of the answer's body did not come in time
├── StalledError               the answer began, and then nothing came any more
└── MalformedAnswerError       what came is not an answer in HTTP, or too large a head
"""


class UpstreamError(Exception):
    """No answer, or not a whole one."""


class NotConnectedError(UpstreamError):
    """There was no connection to send the request over."""


class ConnectRefusedError(NotConnectedError):
    """Nobody listens there."""


class ConnectTimeoutError(NotConnectedError):
    """There was no connection in time; somebody may still be there, only too busy."""


class UnreachableError(NotConnectedError):
    """There is no way to the host, or nobody knows its name. Whether the endpoint lives is not known."""


class InsecureError(NotConnectedError):
    """Somebody is there who speaks no TLS, or whose certificate is not to be trusted."""


class OwnLimitError(NotConnectedError):
    """This process can open no further connection, which is no fault of the endpoint's."""


class ConnectionLostError(UpstreamError):
    """The connection ended before the answer did."""


class StaleConnectionError(ConnectionLostError):
    """A kept connection was lost as soon as it was used again: most likely the endpoint had closed it already."""


class AnswerTimeoutError(UpstreamError):
    """The first byte of the answer's body did not come in time."""


class StalledError(UpstreamError):
    """The answer began, and then nothing came any more."""


class MalformedAnswerError(UpstreamError):
    """What came is not an answer in HTTP, or more of it than an answer has."""
