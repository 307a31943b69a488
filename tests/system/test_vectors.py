"""Vectors, scores and ranks through the gateway are the engine's own, and so is what it says of wrong requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from headwater_engine.server.serve import EngineServer
from tests.engine.front import HANG, settings_of, until
from tests.engine.tiny_pooled import make_encoder, pooled_by
from tests.router.gateway import error_of, gateway

TEXTS = ["the river is long", "a stone in the water", "who runs"]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": TEXTS},
    "/v1/score": {"text_1": TEXTS[0], "text_2": TEXTS},
    "/v1/rerank": {"query": TEXTS[0], "documents": TEXTS, "top_n": 2},
    "/v2/rerank": {"query": TEXTS[0], "documents": TEXTS},
}
WRONG: list[tuple[str, dict[str, Any], int, str | None, str | None]] = [
    ("/v1/embeddings", {}, 400, None, "input"),
    ("/v1/embeddings", {"input": [["river"]]}, 400, None, "input"),
    ("/v1/embeddings", {"input": "river", "dimensions": 33}, 400, None, "dimensions"),
    ("/v1/embeddings", {"input": "river " * 200}, 400, "context_length_exceeded", "input"),
    ("/v1/score", {"text_1": TEXTS, "text_2": TEXTS[:2]}, 400, None, "text_2"),
    ("/v1/rerank", {"query": "river", "documents": []}, 400, None, "documents"),
    ("/v1/rerank", {"query": "river", "documents": TEXTS, "rank_fields": ["a"]}, 400, None, "rank_fields"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, 400, "not_done_here", None),
]
"""A path, what is asked there, and the answer's status, code and field."""


@dataclass(frozen=True, slots=True)
class At:
    """Where an engine is, as `gateway` wants it said."""

    url: str


@asynccontextmanager
async def engine_and_gateway(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Clients of either, with a real engine process."""
    settings = settings_of(model=str(folder), threads=1, served_model_name=["m"])
    server = asyncio.create_task(EngineServer(settings).run())
    url = f"http://127.0.0.1:{settings.port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=HANG) as engine:
            await until(engine, "/ready", 200)
            async with gateway(At(url), backend="headwater") as before:  # type: ignore[arg-type]
                yield engine, before.client
    finally:
        server.cancel()
        await asyncio.wait([server])


@pytest.mark.timeout(600)
async def test_the_gateway_gives_what_the_engine_gives_and_says_what_it_says(tmp_path: Path) -> None:
    folder = pooled_by(make_encoder("bert", tmp_path), "mean_tokens")
    async with engine_and_gateway(folder) as (engine, through):
        for path, asked in ASKED.items():
            own, answer = await engine.post(path, json=asked), await through.post(path, json={"model": "m"} | asked)
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == own.headers["content-type"] == "application/json"
            assert said(answer) == said(own)
        assert_sensible(await through.post("/v1/embeddings", json={"model": "m", **ASKED["/v1/embeddings"]}))
        for path, asked, status, code, param in WRONG:
            answer = await through.post(path, json={"model": "m"} | asked)
            assert answer.status_code == status, (asked, answer.text)
            error = error_of(answer)
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param), error
        answer = await through.post("/v1/embeddings", json={"model": "other", "input": "river"})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


def said(answer: httpx.Response) -> dict[str, Any]:
    """But for the name and the time of an answer."""
    return {name: value for name, value in answer.json().items() if name not in ("id", "created")}


def assert_sensible(answer: httpx.Response) -> None:
    """Vectors of different texts, of the length 1."""
    found = np.array([each["embedding"] for each in answer.json()["data"]])
    assert found.shape == (len(TEXTS), 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert len(np.unique(found.round(3), axis=0)) == len(TEXTS)
