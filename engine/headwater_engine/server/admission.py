"""How much may be asked at once: of one request, and of all together.

What is counted are answers: one for each prompt and each of its `n`. An answer is open from before its prompt is
tokenized until its request has ended. So those that wait are bounded also where their prompts are not read yet. Once
they are read, their tokens count, too: a thousand prompts of a hundred thousand tokens each would take gigabytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Gauge

from headwater.memory import memory_limit
from headwater.openai.errors import BadRequestError, ServiceUnavailableError
from headwater.openai.request import SamplingRequest
from headwater.openai.vectors import TextsRequest
from headwater.tally import Count
from headwater_engine.config import EngineSettings
from headwater_engine.server.asking import Question

MOST_ANSWERS: Final = 1024
"""To one request. Each costs the HTTP process some 0.1 ms before it is asked for, in which all others wait."""
_BYTES_OF_TOKEN: Final = 100
"""Of a prompt, in both processes: a Python number each, the text that it came from, and the message between."""
_SHARE_OF_MEMORY: Final = 16
_RETRY_AFTER: Final = 5
"""Seconds; some of those that wait are done by then."""


class Admission:
    """Knows how many answers are open, and how long their prompts are."""

    def __init__(self, settings: EngineSettings, turned_away: Count, prompt_tokens: Gauge) -> None:
        """`turned_away` counts, and `prompt_tokens` shows, for the metrics."""
        self._room = settings.max_num_seqs + settings.max_waiting
        self._waiting = settings.max_waiting
        self._takes_priorities = settings.scheduling_policy == "priority"
        self._turned_away = turned_away
        self._prompt_tokens = prompt_tokens
        self._open = 0
        self._tokens = 0
        self.most_tokens = memory_limit() // _SHARE_OF_MEMORY // _BYTES_OF_TOKEN
        """Prompt tokens of all open answers together: a sixteenth of the memory."""

    @contextmanager
    def of(self, request: SamplingRequest | TextsRequest, *, prompts: int = 1, field: str = "prompt") -> Iterator[None]:
        """Let a request in, for as long as it is answered. `field`: of the prompts.

        Raises BadRequestError where it could never be, and ServiceUnavailableError where it cannot be now.
        """
        each = request.n if isinstance(request, SamplingRequest) else 1
        self._check(prompts, each, field)
        self._check_priority(request.priority)
        answers = prompts * each
        if self._open + answers > self._room:
            raise self._no_room(f"As many requests wait as may (--max-waiting {self._waiting}).")
        self._open += answers
        try:
            yield
        finally:
            self._open -= answers

    @contextmanager
    def holding(self, question: Question, context: int) -> Iterator[None]:
        """Count the tokens of a request that was let in. `context`: one prompt of so many is always taken.

        Raises as `of` does.
        """
        with self.holding_tokens(question.n * sum(map(len, question.prompts)), context, "prompt"):
            yield

    @contextmanager
    def holding_tokens(self, tokens: int, context: int, field: str) -> Iterator[None]:
        """The same of so many tokens, in `field`."""
        most = max(self.most_tokens, context)
        if tokens > most:
            raise BadRequestError(
                f"The prompts have {tokens} tokens for all answers together; this server holds {most} at once.",
                param=field,
            )
        if self._tokens + tokens > most:
            raise self._no_room(f"As many prompt tokens wait as this server may hold ({most}).")
        self._hold(tokens)
        try:
            yield
        finally:
            self._hold(-tokens)

    def _hold(self, tokens: int) -> None:
        self._tokens += tokens
        self._prompt_tokens.set(self._tokens)

    def _no_room(self, why: str) -> ServiceUnavailableError:
        self._turned_away.inc()
        return ServiceUnavailableError(why, code="queue_full", retry_after=_RETRY_AFTER)

    def _check(self, prompts: int, each: int, field: str) -> None:
        most = min(MOST_ANSWERS, self._room)
        if prompts * each > most:
            asked = f"{prompts} prompts with {each} answers each" if prompts > 1 else f"{each} answers"
            raise BadRequestError(
                f"{asked} are more than the {most} answers that one request may ask for.",
                param=field if prompts > each else "n",
            )

    def _check_priority(self, priority: int) -> None:
        if priority and not self._takes_priorities:
            raise BadRequestError(
                f"`priority` must be 0, found {priority}: this engine goes by the order in which requests "
                "come, unless it runs with --scheduling-policy priority.",
                param="priority",
            )
