"""How much a key may ask for: requests a minute, and requests at once.

Requests a minute are a bucket that holds as many as a minute may have, and fills up evenly. It is kept as one number,
the moment at which it is full again: nothing has to be counted down, and nothing runs while nobody asks. Whoever was
quiet for a minute may so send all of them in one go; over any time it is never more than the rate and one bucket.

Limits are of this router process. Two of them let twice as much through.
"""

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_MINUTE: Final = 60.0
_EPSILON: Final = 1e-6
"""Seconds by which sums of floats may be off."""


class Level(NamedTuple):
    """How full the bucket is."""

    limit: int
    """Requests a minute."""
    remaining: int
    full_in: float
    """Seconds."""
    next_in: float
    """Seconds until there is one more; 0 where there is one."""

    def headers(self) -> dict[str, str]:
        """As OpenAI's API tells it, with each answer."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": duration(self.full_in),
        }


@dataclass(slots=True)
class Bucket:
    """All times are monotonic seconds, given by the caller."""

    full_at: float = 0.0

    def take(self, limit: int, now: float) -> bool:
        """One request, if there is one left. `limit` may differ from one call to the next."""
        full_at = max(self.full_at, now) + _MINUTE / limit
        if full_at - now > _MINUTE + _EPSILON:
            return False
        self.full_at = full_at
        return True

    def level(self, limit: int, now: float) -> Level:
        a_request = _MINUTE / limit
        full_in = max(0.0, self.full_at - now)
        remaining = max(0, math.floor((_MINUTE - full_in + _EPSILON) / a_request))
        return Level(limit, remaining, full_in, 0.0 if remaining else full_in + a_request - _MINUTE)


@dataclass(slots=True, eq=False)
class Use:
    """What one key has used, and what it was refused; plain numbers, read when somebody scrapes."""

    bucket: Bucket = field(default_factory=Bucket)
    running: int = 0
    """Requests now."""
    admitted: int = 0
    over_rate: int = 0
    over_concurrency: int = 0
    other_models: int = 0
    """Requests for a model that the key may not use."""


def duration(seconds: float) -> str:
    """As OpenAI's API writes it: `12ms`, `1.5s`, `6m0s`. Rounded up."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    written = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{written}" if minutes else written
