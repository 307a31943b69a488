"""Finds the usage in an answer without parsing it: only its last bytes are looked at."""

import re
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = re.compile(rb'"\s*:\s*(\d+)')
_TAIL: Final = 2048


@dataclass(slots=True, frozen=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int | None
    """None where the engine does not say."""


def find_usage(before: bytes, last: bytes) -> Usage | None:
    """`before` and `last`: the last two pieces of an answer's body."""
    tail = before[-_TAIL:] + last if before else last
    prompt_tokens = _last_number(tail, b'"prompt_tokens"')
    return None if prompt_tokens is None else Usage(prompt_tokens, _last_number(tail, b'"cached_tokens"'))


def _last_number(tail: bytes, name: bytes) -> int | None:
    """From the end on, and only as far as needed: a search over all of it is seen in the router's profile."""
    place = tail.rfind(name, -_TAIL)
    found = _NUMBER.match(tail, place + len(name) - 1) if place >= 0 else None
    return int(found[1]) if found else None
