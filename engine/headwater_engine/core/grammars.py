"""Requests whose answers have a form: they wait until it has become a grammar, and get a mask for each token.

Others notice nothing of either: grammars are made on threads, and a step without such a request asks for no mask.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import structlog

from headwater_engine.core.messages import Generate, Tokenizer
from headwater_engine.core.request import Request
from headwater_engine.core.scheduler import Flight
from headwater_engine.core.step import TokenMasks
from headwater_engine.grammar.compiler import Compiler, Grammar
from headwater_engine.grammar.matcher import GrammarError, Matcher

log = structlog.get_logger(__name__)


class Grammars:
    """Owns the requests that wait for a grammar; the engine has no other notion of them."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._compiler: Compiler | None = None
        self._waiting: dict[str, tuple[Generate, Future[Grammar]]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, tokenizer: Tokenizer) -> None:
        """From now on there can be grammars."""
        self._compiler = Compiler(tokenizer.text, tokenizer.eos_token_ids, self._vocab_size)

    def close(self) -> None:
        """Those that wait to be made are not made any more."""
        if self._compiler is not None:
            self._compiler.close()

    def take(self, message: Generate) -> None:
        """A request with a constraint. Raises GrammarError where there are no grammars."""
        if self._compiler is None or message.constraint is None:
            raise GrammarError("the engine knows no tokenizer yet")
        self._waiting[message.id] = message, self._compiler.compile(message.constraint)

    def drop(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def made(self) -> Iterator[tuple[Generate, Matcher | GrammarError]]:
        """Requests that wait no more, and their matchers, or why there is none."""
        for request_id, (message, future) in list(self._waiting.items()):
            if future.done():
                del self._waiting[request_id]
                yield message, _result(future)

    def masks(self, flight: Flight, going: Sequence[bool]) -> tuple[TokenMasks, list[tuple[Request, GrammarError]]]:
        """What may come next in each answer that has a form; and those for which it cannot be said any more.

        `going`: of each of the step's requests, whether it still wants a token of this step.
        """
        seats: list[int] = []
        failed: list[tuple[Request, GrammarError]] = []
        bits = np.zeros((len(flight.step.masked), -(-self._vocab_size // 32)), dtype=np.int32)
        for request, goes in zip(flight.requests, going, strict=True):
            if request.matcher is None or not goes:
                continue
            try:
                request.matcher.fill(bits[len(seats)])
                seats.append(request.seat)
            except GrammarError as error:
                failed.append((request, error))
        return TokenMasks(seats, bits[: len(seats)].tobytes()), failed


def _result(future: "Future[Grammar]") -> Matcher | GrammarError:
    try:
        return future.result().begin()
    except GrammarError as error:
        return error
    except Exception as error:
        log.exception("a grammar could not be made")
        return GrammarError(f"the engine failed on it: {error}")
