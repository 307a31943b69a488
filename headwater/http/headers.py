"""Which headers of a message are meant for its other end, and which for the next hop alone."""

from typing import Final

Headers = list[tuple[bytes, bytes]]
"""Names are in lower case."""

OWN_TO_A_CONNECTION: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip


def end_to_end(headers: Headers, without: frozenset[bytes] = OWN_TO_A_CONNECTION) -> Headers:
    """Those to be passed on: neither among `without`, nor named by a `connection` header."""
    if names := named_by_connection(headers):
        without |= names
    return [each for each in headers if each[0] not in without]


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """What the `connection` headers among these claim for the connection."""
    names: set[bytes] = set()
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            names |= {each.strip().lower() for each in value.split(b",")}
    # No sender may claim it, and where a body ends shall not be told twice.
    names.discard(b"content-length")
    return frozenset(names)


def is_stream(headers: Headers) -> bool:
    return any(name == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers)
