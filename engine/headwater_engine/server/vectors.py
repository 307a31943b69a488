"""What the engine makes of prompts where it makes vectors: all of one request, and the engine hears if nobody waits."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headwater.openai.errors import APIError
from headwater_engine.core.messages import Embed, FinishReason, Output
from headwater_engine.server.answer import failure_of
from headwater_engine.server.client import EngineClient
from headwater_engine.server.metrics import RequestTimer, ServerMetrics

Vector = npt.NDArray[np.float32]


class Found(NamedTuple):
    vectors: list[Vector]
    """Of the prompts, in their order."""
    tokens: int
    cached: int
    """Prompt tokens that came from the prefix cache."""


class Vectors:
    """Of one HTTP request."""

    def __init__(self, engine: EngineClient, metrics: ServerMetrics, questions: Sequence[Embed]) -> None:
        self._engine = engine
        self._questions = questions
        self._open: dict[str, RequestTimer] = {question.id: metrics.start() for question in questions}
        self._found: dict[str, Vector] = {}
        self._cached = 0
        self._failure: APIError | None = None
        self._woken = asyncio.Event()

    async def found(self) -> Found:
        """Raises APIError. Cancelled where the client leaves; then the engine hears that nobody wants them."""
        try:
            for question in self._questions:
                self._engine.ask(question, self._take)
                await asyncio.sleep(0)  # others have their turn: there may be a thousand, with long prompts
                if self._failure is not None:
                    break
            await self._woken.wait()
            if self._failure is not None:
                raise self._failure
        finally:
            for open_id in list(self._open):
                self._leave(open_id, "abort")
        vectors = [self._found[question.id] for question in self._questions]
        return Found(vectors, sum(len(question.prompt) for question in self._questions), self._cached)

    def _take(self, output: Output) -> None:
        if output.finish_reason is FinishReason.ERROR:
            self._leave(output.id, "error")
            # Of several, none is of use without the others.
            self._failure = self._failure or failure_of(output, engine_is_alive=self._engine.failure is None)
        elif output.vector is not None:
            self._found[output.id] = np.frombuffer(output.vector, np.float32)
            self._cached += output.cached_tokens
            self._leave(output.id, "stop")
        if self._failure is not None or len(self._found) == len(self._questions):
            self._woken.set()

    def _leave(self, request_id: str, reason: str) -> None:
        self._open.pop(request_id).finish(reason)
        self._engine.leave(request_id)
