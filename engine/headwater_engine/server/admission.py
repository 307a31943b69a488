"""How much may be asked at once: of one request, and of all together.

What is counted are answers: one for each prompt and each of its `n`. An answer is open from before its prompt is
tokenized until its request has ended. So those that wait are bounded also where their prompts are not read yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from headwater.openai.errors import BadRequestError, ServiceUnavailableError
from headwater.openai.request import SamplingRequest
from headwater.tally import Count
from headwater_engine.config import EngineSettings

MOST_ANSWERS: Final = 1024
"""To one request. Each costs the HTTP process some 0.1 ms before it is asked for, in which all others wait."""
_RETRY_AFTER: Final = 5
"""Seconds; some of those that wait are done by then."""


class Admission:
    """Knows how many answers are open."""

    def __init__(self, settings: EngineSettings, turned_away: Count) -> None:
        self._room = settings.max_num_seqs + settings.max_waiting
        self._waiting = settings.max_waiting
        self._takes_priorities = settings.scheduling_policy == "priority"
        self._turned_away = turned_away
        self._open = 0

    @contextmanager
    def of(self, request: SamplingRequest, *, prompts: int = 1) -> Iterator[None]:
        """Let a request in, for as long as it is answered.

        Raises BadRequestError where it could never be, and ServiceUnavailableError where it cannot be now.
        """
        self._check(request, prompts)
        answers = prompts * request.n
        if self._open + answers > self._room:
            self._turned_away.inc()
            raise ServiceUnavailableError(
                f"As many requests wait as may (--max-waiting {self._waiting}).",
                code="queue_full",
                retry_after=_RETRY_AFTER,
            )
        self._open += answers
        try:
            yield
        finally:
            self._open -= answers

    def _check(self, request: SamplingRequest, prompts: int) -> None:
        most = min(MOST_ANSWERS, self._room)
        if prompts * request.n > most:
            asked = f"{prompts} prompts with {request.n} answers each" if prompts > 1 else f"{request.n} answers"
            raise BadRequestError(
                f"{asked} are more than the {most} answers that one request may ask for.",
                param="prompt" if prompts > request.n else "n",
            )
        if request.priority and not self._takes_priorities:
            raise BadRequestError(
                f"`priority` must be 0, found {request.priority}: this engine goes by the order in which requests "
                "come, unless it runs with --scheduling-policy priority.",
                param="priority",
            )
