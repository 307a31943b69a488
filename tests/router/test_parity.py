"""A tokenizer that is not the engine's is found out, and said so; and used again when it is right."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from headwater_router.endpoints.parity import SAMPLE, Parity
from headwater_router.index.tokenizers import _Model
from tests.router.gateway import gateway
from tests.router.upstream import Exchange, upstream


def _model(tokenizer: "Words") -> _Model:
    return _Model(tokenizer)


class Words:
    """As many ids as there are words."""

    def __init__(self) -> None:
        self.shift = 0

    def chat(self, body: Any) -> Sequence[int]:
        words = " ".join(message["content"] for message in body["messages"]).split()
        return [len(word) + self.shift for word in words]

    def completion(self, body: Any) -> None:
        return None


async def tokenize(exchange: Exchange) -> None:
    asked = json.loads(exchange.body)
    await exchange.whole(json.dumps({"count": 1, "tokens": list(Words().chat(asked))}).encode())


@pytest.mark.parametrize("answer", [b"{}", b"[]", b'{"tokens": [-1]}', b'{"tokens": "x"}', b"no"])
async def test_what_is_no_answer_says_nothing(answer: bytes) -> None:
    async def odd(exchange: Exchange) -> None:
        await exchange.whole(answer)

    async with upstream() as engine, gateway(engine) as running:
        engine.answer = odd
        router = running.router
        words = Words()
        router.tokenizers._models["m"] = _model(words)
        await Parity(router.fleet, router.tokenizers, router.descriptors).look("m", words)
        assert router.tokenizers.distrust("m") == ""


async def test_a_tokenizer_with_other_ids_is_not_used_until_they_are_the_same_again() -> None:
    async with upstream() as engine, gateway(engine) as running:
        engine.answer = tokenize
        router, words = running.router, Words()
        router.tokenizers._models["m"] = _model(words)

        async def look() -> str | None:
            await Parity(router.fleet, router.tokenizers, router.descriptors).look("m", words)
            return router.tokenizers.distrust("m")

        assert await look() == ""
        words.shift = 1
        assert "other token ids" in (await look() or "")
        assert router.tokenizers.of("m") is None
        words.shift = 0
        assert await look() == ""
        assert router.tokenizers.of("m") is words


async def test_it_is_not_asked_again_at_once() -> None:
    asked = 0

    async def counted(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        assert json.loads(exchange.body)["messages"] == SAMPLE
        await tokenize(exchange)

    async with upstream() as engine, gateway(engine) as running:
        engine.answer = counted
        router, words = running.router, Words()
        parity = Parity(router.fleet, router.tokenizers, router.descriptors)
        await asyncio.gather(parity.look("m", words), parity.look("m", words))
        assert asked == 1
