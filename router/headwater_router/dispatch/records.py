"""What is kept of the last decisions and failures, for whoever asks why.

Plain text and numbers: a record holds no endpoint and no request alive. Times are seconds since the epoch, durations
seconds.
"""

from dataclasses import dataclass

from headwater_router.outcome import Outcome
from headwater_router.picker.base import Label
from headwater_router.picker.classes import Kind
from headwater_router.picker.split import Why


@dataclass(slots=True)
class Candidate:
    """An endpoint that a request could have gone to."""

    endpoint: str
    rank: int | None
    """The data-parallel engine behind it; None: the endpoint as a whole."""
    cached_tokens: int
    """Prompt tokens expected in its cache."""
    predicted_ttft: float | None
    """None where nothing is learned of it, and with policies that do not predict."""
    in_flight: int
    penalty: int


@dataclass(slots=True)
class DecisionRecord:
    """One attempt: where it went, and what else there was."""

    time: float
    request_id: str
    key: str
    """The name of its API key."""
    model: str
    policy: str
    label: Label
    attempt: int
    """1 is the first."""
    endpoint: str
    prompt_tokens: int
    candidates: tuple[Candidate, ...]
    """The chosen one first, then the best of the others."""
    deployment: str = ""
    kind: Kind | None = None
    """Its class; None where nobody asked for it."""
    why: Why = Why.ALONE
    """It went to that deployment."""
    rank: int | None = None
    """The data-parallel engine that it was sent to. None: the endpoint as a whole."""
    prefix: str = ""
    """Requests whose prompts begin alike have the same: a hash of the first block. Empty without a whole one."""


@dataclass(slots=True)
class FailureRecord:
    """One stay at an endpoint that ended otherwise than with an answer, or a request that found none."""

    time: float
    request_id: str
    key: str
    model: str
    endpoint: str
    """Empty where it was sent to none."""
    outcome: Outcome
    reason: str
