"""The engine's HTTP server in this process, around a fake engine, and how tests ask it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from headwater_engine.config import EngineSettings
from headwater_engine.server.serve import EngineServer
from tests.engine.fake_engine import FakeEngine

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Hi"}
HANG = 120
"""Seconds; what takes so long hangs. A busy machine is never as slow."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings_of(**changes: Any) -> EngineSettings:
    return EngineSettings(**({"model": "random:tiny", "port": free_port()} | changes))


@asynccontextmanager
async def serving(engine: FakeEngine, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The server, in this process, around the fake engine. Listens; the engine has not said anything yet."""
    settings = settings_of(**changes)
    server = asyncio.create_task(EngineServer(settings, command=engine.command).run())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.port}", timeout=HANG) as http:
        try:
            await until(http, "/health", 200)
            yield http
        finally:
            await engine.exit(0)
            await server


async def until(http: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    async with asyncio.timeout(HANG):
        while True:
            try:
                answer = await http.get(path)
                if answer.status_code == status:
                    return answer
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.01)


def post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(http.post(path, json=body))


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The stream's events, which [DONE] has to end."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
