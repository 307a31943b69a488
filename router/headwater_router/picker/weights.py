"""Which of several ModelDeployments gets a request, where more than one serves the model it asks for.

Each is to get the share of the traffic that its weight says, and a conversation is to stay where its prefix is cached.
So it is no die that is cast for each request. A key of what stays the same in a conversation is hashed with each
deployment's name, and the weights decide between the hashes: weighted rendezvous hashing (Thaler and Ravishankar, 1996;
Schindelhauer and Schomaker, 2005). All replicas of a router agree without talking; when a deployment comes, goes or
changes its weight, only those conversations move that it wins or loses; and when one has no endpoint left, its
conversations spread over the others and come back to it later.

The key is the session's header. Without it, in chats, it is the messages up to the user's first: later turns share
them, and they tell conversations apart that share a system prompt, which the beginning of the prompt alone would not.
A prompt without messages is known by its first block. What has neither is cast by die.
"""

import math
import random
import re
from collections.abc import Sequence
from itertools import islice
from typing import Final

from xxhash import xxh3_64_intdigest

from headwater_router.gateway.body import Body
from headwater_router.picker.base import Prompt

_MAX_TOKENS: Final = 4096
_MAX_BYTES: Final = 1 << 16
"""Of the user's first message behind its role: conversations that differ only after these have one key."""
_by_user: Final = re.compile(rb'"role"(?<!\\"role")\s*+:\s*+"user"').search
"""In JSON, where no text can imitate it: there the quotes are escaped."""
_tokens: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL).finditer
"""Strings, which are over where the text is cut, and brackets."""


def conversation(body: Body, prompt: Prompt) -> int | None:
    """A hash of what stays the same from turn to turn. None: nothing is known to."""
    if prompt.session is not None:
        return xxh3_64_intdigest(prompt.session.encode("utf-8", "surrogatepass"))
    items = memoryview(body.messages or body.input)
    if len(items) > 2 and bytes(items[:1]) == b'"':
        return xxh3_64_intdigest(items)
    if (end := _end_of_users_first(items)) is not None:
        return xxh3_64_intdigest(items[:end])
    return prompt.text_chain[0] if prompt.text_chain else None


def _end_of_users_first(items: memoryview) -> int | None:
    """Where the user's first message ends, or where the search for it does: that place is the same in each turn."""
    match = _by_user(items)
    if match is None:
        return None
    end, depth = match.end(), 1
    for token in islice(_tokens(items, end, end + _MAX_BYTES), _MAX_TOKENS):
        end = token.end()
        bracket = items[token.start()]
        depth += (bracket in b"[{") - (bracket in b"]}")
        if not depth:
            break
    return end


def choose(weights: Sequence[tuple[str, float]], key: int | None, rng: random.Random) -> str:
    """One of the names, of which there is at least one. Weight 0 is chosen only where all have it."""
    if len(weights) == 1:
        return weights[0][0]
    shares = [(name, weight) for name, weight in weights if weight > 0] or [(name, 1.0) for name, _ in weights]
    if key is None:
        return rng.choices([name for name, _ in shares], [weight for _, weight in shares])[0]
    return min(shares, key=lambda share: _distance(key, *share))[0]


def _distance(key: int, name: str, weight: float) -> float:
    """Of hashes that are even over (0, 1), -log is exponential, and the least of these is so with the weight's odds."""
    even = (xxh3_64_intdigest(name.encode(), key) + 0.5) / 2**64
    return -math.log(even) / weight if even < 1 else 0.0
