"""Holds the router's tokenizers against the engines': a conversation is tokenized by both, when a tokenizer comes into
use and every ten minutes after that.

Asked is /tokenize with messages, as vLLM and our own engine have it. A server that does not know that, as SGLang, is
held to the usage of its answers alone (`index.tokenizers`).
"""

import asyncio
from array import array
from typing import Any, Final

import msgspec
import structlog

from headwater.http.descriptors import Descriptors
from headwater_router.endpoints.asking import ask
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.endpoints.fleet import Fleet
from headwater_router.index.tokenizers import Tokenizer, Tokenizers
from headwater_router.upstream.errors import UpstreamError
from headwater_router.upstream.pool import Pool

log = structlog.get_logger(__name__)

_LOOK: Final = 5.0
"""Seconds between two looks at whether anything is to be compared."""
_AGAIN: Final = 600.0
_TIMEOUT: Final = 30.0
"""Seconds for an answer; an engine may be in the middle of a long step."""
_MOST_ANSWER: Final = 1 << 20
SAMPLE: Final[list[dict[str, Any]]] = [
    {"role": "system", "content": "You are the keeper of a water gauge."},
    {"role": "user", "content": "Which level, please?\n\n  12.5 m — naïve, 日本語 🙂"},
    {"role": "assistant", "content": "It is 12.5 m."},
    {"role": "user", "content": " And\tyesterday? "},
]


class _Tokenized(msgspec.Struct):
    tokens: list[int]


_answer: Final = msgspec.json.Decoder(_Tokenized).decode


class Parity:
    """Run it as a task for as long as the router runs."""

    def __init__(self, fleet: Fleet, tokenizers: Tokenizers, descriptors: Descriptors) -> None:
        self._fleet = fleet
        self._tokenizers = tokenizers
        self._descriptors = descriptors
        self._compared: dict[str, float] = {}
        """When it was last done, by model, in the loop's time."""

    async def run(self) -> None:
        while True:
            for model, tokenizer in self._tokenizers.in_use().items():
                await self.look(model, tokenizer)
            await asyncio.sleep(_LOOK)

    async def look(self, model: str, tokenizer: Tokenizer) -> None:
        """Compare, if it is time and there is anybody to ask."""
        now = asyncio.get_running_loop().time()
        ready = [served for served in self._fleet.serving(model) if served[0].ready]
        if not ready or now - self._compared.get(model, float("-inf")) < _AGAIN:
            return
        self._compared[model] = now
        endpoint, served = ready[0]
        theirs = await self._ask(endpoint, served.upstream or served.name)
        ours = await self._tokenizers.run(0, lambda: tokenizer.chat({"messages": SAMPLE}))
        if theirs is None or ours is None:
            log.debug("tokenizer not compared", model=model, endpoint=endpoint.name)
            return
        same = array("I", ours) == array("I", theirs)
        self._tokenizers.compared(model, "" if same else f"it has other token ids than {endpoint.name}")

    async def _ask(self, endpoint: Endpoint, model: str) -> list[int] | None:
        """The token ids of the sample; None where it does not say."""
        body = msgspec.json.encode({"model": model, "messages": SAMPLE})
        pool = Pool(endpoint.host, endpoint.port, _TIMEOUT, self._descriptors, endpoint.tls)
        try:
            status, answer = await ask(endpoint, pool, "/tokenize", _TIMEOUT, _MOST_ANSWER, body)
        except UpstreamError:
            return None
        finally:
            pool.close()
        return _ids(answer) if status == 200 else None


def _ids(answer: bytes) -> list[int] | None:
    try:
        tokens = _answer(answer).tokens
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return tokens if all(0 <= each < 2**32 for each in tokens) else None
