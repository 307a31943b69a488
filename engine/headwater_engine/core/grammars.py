"""Requests whose answers have a form: they wait until it has become a grammar, and get a mask for each token.

Others notice nothing of either: grammars and masks are made on threads, and a step without such a request asks for no
mask.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple

import numpy as np
import structlog

from headwater_engine.core.messages import Generate, Tokenizer
from headwater_engine.core.request import Request
from headwater_engine.core.step import TokenMasks
from headwater_engine.grammar.ahead import MaskMaker
from headwater_engine.grammar.compiler import Compiler, Grammar
from headwater_engine.grammar.matcher import GrammarError, Matcher

log = structlog.get_logger(__name__)

_REST: Final = 0.001
"""Seconds, after which there may be requests to hear of."""


class Masks(NamedTuple):
    """Of a step."""

    tokens: TokenMasks
    late: list[Request]
    """Whose mask is not made yet."""
    failed: list[tuple[Request, GrammarError]]
    """Of which it cannot be said any more what may come next."""
    unmasked: list[Request]
    """Whose next token is to be looked at."""


class Grammars:
    """Owns the requests that wait for a grammar; the engine has no other notion of them."""

    def __init__(self, vocab_size: int, *, checks: bool) -> None:
        """`checks`: tokens may be drawn without masks, and looked at then."""
        self._checks = checks
        self._vocab_size = vocab_size
        self._compiler: Compiler | None = None
        self._maker: MaskMaker | None = None
        self._waiting: dict[str, tuple[Generate, Future[Grammar]]] = {}
        self._wanted: list[Matcher] = []
        self._bits = np.zeros((0, -(-vocab_size // 32)), dtype=np.int32)
        """Of a step's masks, in memory that is used again."""

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, tokenizer: Tokenizer) -> None:
        """From now on there can be grammars."""
        self._compiler = Compiler(tokenizer.text, tokenizer.eos_token_ids, self._vocab_size)
        self._maker = MaskMaker()

    def close(self) -> None:
        """What waits to be made is not made any more."""
        if self._compiler is not None:
            self._compiler.close()
        if self._maker is not None:
            self._maker.close()

    def take(self, message: Generate) -> None:
        """A request with a constraint. Raises GrammarError where there are no grammars."""
        if self._compiler is None or message.constraint is None:
            raise GrammarError("the engine knows no tokenizer yet")
        self._waiting[message.id] = message, self._compiler.compile(message.constraint)

    def drop(self, request_id: str) -> None:
        """Nobody waits for its grammar any more, if it was waited for."""
        message, _ = self._waiting.pop(request_id, (None, None))
        if message is not None and message.constraint is not None and self._compiler is not None:
            self._compiler.forget(message.constraint)

    def made(self) -> Iterator[tuple[Generate, Matcher | GrammarError]]:
        """Requests that wait no more, and their matchers, or why there is none."""
        for request_id, (message, future) in list(self._waiting.items()):
            if future.done():
                del self._waiting[request_id]
                yield message, _result(future)

    def want(self, request: Request) -> None:
        """It has come to a new token, for which there is to be a mask, unless that can be made when it is needed."""
        matcher = request.matcher
        if matcher is not None and not (self._checks and matcher.cost.quick):
            self._wanted.append(matcher)

    def _may_look(self, request: Request) -> bool:
        """Whether its next token may be drawn without a mask. Log-probabilities are made as tokens are drawn."""
        matcher = request.matcher
        can = self._checks and matcher is not None and matcher.cost.quick and not matcher.doubted
        return can and request.params.logprobs is None

    def _lacking(self, request: Request) -> Matcher | None:
        """Where it should have a mask before its next token is drawn, and nobody has been asked for one."""
        matcher = request.matcher
        lacks = matcher is not None and not matcher.asked and matcher.made and not self._may_look(request)
        return matcher if lacks else None

    def make_wanted(self) -> None:
        """Begin with all masks that are wanted, when nobody has to be told a token before more can be."""
        if self._wanted and self._maker is not None:
            self._maker.make(self._wanted)
            self._wanted = []

    def masks(self, requests: Sequence[Request]) -> Masks:
        """What may come next in each of these answers, which have a form."""
        matchers = [request.matcher for request in requests if request.matcher is not None]
        if self._maker is not None:
            self._maker.make_now([matcher for request in requests if (matcher := self._lacking(request)) is not None])
            self._maker.wait(matchers)
        if len(self._bits) < len(requests):
            self._bits = np.zeros((2 * len(requests), self._bits.shape[1]), dtype=np.int32)
        seats: list[int] = []
        masks = Masks(TokenMasks(seats, memoryview(b"")), [], [], [])
        for request, matcher in zip(requests, matchers, strict=True):
            matcher.late = not matcher.made
            if matcher.late:
                masks.late.append(request)
                continue
            if not matcher.asked:
                masks.unmasked.append(request)
                continue
            try:
                self._bits[len(seats)] = matcher.mask()[: self._bits.shape[1]]
                seats.append(request.seat)
            except GrammarError as error:
                masks.failed.append((request, error))
        masks.tokens.bits = self._bits[: len(seats)].data
        return masks

    def refused(self, drawn: Iterable[tuple[Request, int]]) -> tuple[list[Request], list[tuple[Request, GrammarError]]]:
        """Those whose token, which was drawn without a mask, must not come, and those of which that cannot be said.

        The masks of the former are asked for. None of a step is before all are looked at, which would wait for it.
        """
        refused: list[Request] = []
        failed: list[tuple[Request, GrammarError]] = []
        for request, token in drawn:
            assert request.matcher is not None
            try:
                if not request.matcher.allows(token):
                    refused.append(request)
            except GrammarError as error:
                failed.append((request, error))
        if refused and self._maker is not None:
            self._maker.make_now([request.matcher for request in refused if request.matcher is not None])
        return refused, failed

    def rest(self, requests: Sequence[Request]) -> None:
        """Nothing can be done. Where that is for want of masks, wait a little for one of them."""
        held = next((request.matcher for request in requests if request.held), None)
        if held is not None:
            for making in [*held.cost.making][:1]:
                making.wait(_REST)


def _result(future: "Future[Grammar]") -> Matcher | GrammarError:
    try:
        return future.result().begin()
    except GrammarError as error:
        return error
    except Exception as error:
        log.exception("a grammar could not be made")
        return GrammarError(f"the engine failed on it: {error}")
