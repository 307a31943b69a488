"""What an endpoint refuses with, in OpenAI's shape, whatever the engine wrote.

Servers write text, a document of their own, or nothing; and statuses that OpenAI's API does not have. What is in its
shape goes on as it came.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.backends.base import Backend

LONGEST: Final = 64 * 1024
"""Bytes of a refusal that are read. Longer ones go on as they come."""
_LONGEST_TEXT: Final = 1000
"""Characters of one that is no document."""
_STATUSES: Final = {422: 400, 424: 500}
"""What OpenAI's API says for what it has no status for: a body that cannot be read, and a step that failed."""
_TYPES: Final = {429: "rate_limit_error"}
_decode: Final = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    """For the client."""
    document: dict[str, Any]
    """In OpenAI's shape."""
    as_it_came: bool = False
    """Whether that, and the status, are the endpoint's own."""


def read_refusal(backend: Backend, status: int, body: bytes) -> Refusal:
    """Of an answer with that status, which is none of success."""
    if status < 400:  # What is elsewhere, or unchanged, is no error.
        return Refusal(status, {}, as_it_came=True)
    try:
        said = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = None
    match said:
        case {"error": {"message": str()}}:
            return Refusal(status, said, as_it_came=True)
        case {"error": str(message)} | {"detail": str(message)}:
            return _refusal(backend, status, {"message": message})
        case {"detail": [*faults]}:
            return _refusal(backend, status, {"message": "; ".join(map(_fault, faults))})
        case {"message": str()}:
            return _refusal(backend, status, said)
    text = " ".join(body.decode(errors="replace").split())
    return _refusal(backend, status, {"message": text[:_LONGEST_TEXT]})


def refusal_of(backend: Backend, status: int, said: Any) -> Refusal:
    """Of an error that came as an event, or with status 200. `status`: that it carries, or stands for."""
    match said:
        case {"message": str()}:
            return _refusal(backend, status, said)
        case str(text):
            return _refusal(backend, status, {"message": text[:_LONGEST_TEXT]})
    return _refusal(backend, status, {})


def _refusal(backend: Backend, status: int, error: dict[str, Any]) -> Refusal:
    message = error.get("message") or f"The endpoint answered with {status}, and did not say why."
    status = backend.meant_status(status, message)
    status = _STATUSES.get(status, status)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param, code = error.get("param"), error.get("code")
    told = {
        "message": message,
        "type": kind,
        "param": param if isinstance(param, str) else None,
        "code": code if isinstance(code, str) else None,
    }
    return Refusal(status, {"error": told})


def _fault(fault: Any) -> str:
    """One of FastAPI's list."""
    match fault:
        case {"loc": [*place], "msg": str(message)}:
            path = ".".join(str(part) for part in place if part != "body")
            return f"{path}: {message}" if path else message
        case {"msg": str(message)}:
            return message
    return str(fault)[:_LONGEST_TEXT]
