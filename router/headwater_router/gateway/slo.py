"""What a client wants of its answer, by headers: so many milliseconds to the first token, and between two of them.

Read are our own names and llm-d's, the older ones, too. They are for routers, and go to no engine.
"""

import math
import re
from typing import Final

from headwater.http.headers import Headers
from headwater.openai.errors import BadRequestError
from headwater_router.picker.base import Slo

_TTFT: Final = (b"x-headwater-slo-ttft-ms", b"x-llm-d-slo-ttft-ms", b"x-slo-ttft-ms")
"""The first that is there counts."""
_PER_TOKEN: Final = (b"x-headwater-slo-tpot-ms", b"x-llm-d-slo-tpot-ms", b"x-slo-tpot-ms")
SLO_HEADERS: Final = frozenset(_TTFT + _PER_TOKEN)

_NUMBER: Final = re.compile(rb"\d{1,9}(?:\.\d{1,9})?")
_LONGEST: Final = 3_600_000.0
"""Milliseconds."""


def read_slo(headers: Headers, started: float) -> Slo | None:
    """None: its client asks for nothing. `started`: when the request was here, in monotonic seconds.

    Raises BadRequestError for a value that is no time, or for two different ones.
    """
    given = [each for each in headers if each[0] in SLO_HEADERS]
    if not given:
        return None
    ttft, per_token = _seconds(given, _TTFT), _seconds(given, _PER_TOKEN)
    return Slo(ttft, per_token, started + ttft)


def _seconds(given: Headers, names: tuple[bytes, ...]) -> float:
    """Infinite where none is there. All that are there must make sense, also those that others come before."""
    values: dict[bytes, float] = {}
    for name, value in given:
        if name in names and values.setdefault(name, seconds := _read(name, value)) != seconds:
            raise BadRequestError(f"`{name.decode()}` is there twice, with two values.", code="invalid_slo")
    return next((values[name] for name in names if name in values), math.inf)


def _read(name: bytes, value: bytes) -> float:
    milliseconds = float(value) if _NUMBER.fullmatch(value.strip()) else 0.0
    if not 0 < milliseconds <= _LONGEST:
        raise BadRequestError(
            f"`{name.decode()}` must be milliseconds above 0, {_LONGEST:.0f} at most.", code="invalid_slo"
        )
    return milliseconds / 1000
