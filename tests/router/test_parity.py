"""A tokenizer that is not the engine's is found out, and said so; and used again when it is right."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from headwater_router.endpoints.parity import SAMPLE, Parity
from headwater_router.index.tokenizers import _Model
from tests.router.gateway import gateway, until
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


async def test_a_tokenizer_that_stumbles_ends_no_request_and_not_the_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has no token for a word, and none for such words."""
    monkeypatch.setattr("headwater_router.endpoints.parity._LOOK", 0.01)
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="none"))
    (tmp_path / "m").mkdir()
    tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    async with upstream() as engine, gateway(engine, tokenizers_folder=tmp_path) as running:
        engine.answer = tokenize_or_answer
        await running.post()
        await until(lambda: bool(running.router.tokenizers.in_use()))
        await until(lambda: any(b"/tokenize" in exchange.line for exchange in engine.exchanges))
        assert (await running.post()).status_code == 200
        probes = engine.probed[b"/health"]
        await until(lambda: engine.probed[b"/health"] > probes + 2)


async def tokenize_or_answer(exchange: Exchange) -> None:
    await (tokenize(exchange) if b"/tokenize" in exchange.line else exchange.whole())


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
