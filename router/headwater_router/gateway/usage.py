"""Finds the usage in an answer without parsing it: only its last bytes are looked at."""

import re
from dataclasses import dataclass
from typing import Final

_PROMPT: Final = re.compile(rb'"prompt_tokens"\s*:\s*(\d+)')
_CACHED: Final = re.compile(rb'"cached_tokens"\s*:\s*(\d+)')
_TAIL: Final = 2048


@dataclass(slots=True, frozen=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int | None
    """None where the engine does not say."""


def find_usage(before: bytes, last: bytes) -> Usage | None:
    """`before` and `last`: the last two pieces of an answer's body."""
    tail = (before[-_TAIL:] + last)[-_TAIL:]
    prompts = _PROMPT.findall(tail)
    if not prompts:
        return None
    cached = _CACHED.findall(tail)
    return Usage(int(prompts[-1]), int(cached[-1]) if cached else None)
