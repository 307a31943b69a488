"""Finds the usage in an answer without parsing it: only its last bytes are looked at."""

import re
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = re.compile(rb'"\s*:\s*(\d{1,15})')
TAIL: Final = 2048
"""Bytes of an answer's end that are kept to look in."""
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')


@dataclass(slots=True, frozen=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int | None
    """None where the engine does not say."""
    output_tokens: int | None


def find_usage(tail: bytes) -> Usage | None:
    """In the last bytes of an answer, as OpenAI's chat, completions and responses have it, and Anthropic's messages.

    Only what stands behind the last `"usage": {`: a prompt or an answer may speak of tokens, too.
    """
    place = tail.rfind(b'"usage"')
    while place >= 0 and _USAGE.match(tail, place) is None:
        place = tail.rfind(b'"usage"', 0, place)
    if place < 0:
        return None
    tail = tail[place:]
    prompt = _number(tail, b'"prompt_tokens"')
    if prompt is None:
        prompt = _number(tail, b'"input_tokens"')
    output = _number(tail, b'"completion_tokens"')
    if output is None:
        output = _number(tail, b'"output_tokens"')
    return None if prompt is None else Usage(prompt, _number(tail, b'"cached_tokens"'), output)


def _number(tail: bytes, name: bytes) -> int | None:
    place = tail.find(name)
    found = _NUMBER.match(tail, place + len(name) - 1) if place >= 0 else None
    return int(found[1]) if found else None
