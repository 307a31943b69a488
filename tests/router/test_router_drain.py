"""SIGTERM: a router takes no further requests, lets running answers finish for a while, and ends."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.router.gateway import BODY, CHAT, STREAM, error_of
from tests.router.upstream import WORD, Exchange, Upstream, stream_in_two, upstream

FIRST, LAST = WORD % b"1", b"data: [DONE]\n\n"


@asynccontextmanager
async def route(engine: Upstream, *flags: str) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    async with route_with("--endpoint", f"{engine.url},backend=vllm", *flags) as running:
        yield running


@asynccontextmanager
async def route_with(*flags: str) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """A router as a process of its own, which takes requests when it is yielded, and a client for it."""
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    command = [sys.executable, "-m", "headwater", "route"]
    command += ["--port", str(port), "--probe-interval", "0.05", *flags]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        try:
            await until_ready_says(client, 200)
            yield process, client
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def until_ready_says(client: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if (await client.get("/ready")).status_code == status:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def streaming(client: httpx.AsyncClient) -> AsyncIterator[AsyncIterator[bytes]]:
    """The rest of a stream whose first piece has come."""
    async with client.stream("POST", CHAT, content=STREAM) as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == FIRST
        yield pieces


async def test_a_running_stream_finishes_while_new_requests_are_sent_away() -> None:
    release = asyncio.Event()
    async with upstream() as engine, route(engine) as (process, client):
        engine.answer = stream_in_two(FIRST, LAST, release)
        async with streaming(client) as pieces:
            process.terminate()
            await until_ready_says(client, 503)
            refused = await client.post(CHAT, content=BODY)
            assert (refused.status_code, error_of(refused)["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "1"
            release.set()
            assert [piece async for piece in pieces] == [LAST]
        async with asyncio.timeout(60):
            assert await process.wait() == 0
        assert len(engine.exchanges) == 1


async def test_a_client_that_is_here_already_is_answered_once_more_and_told_to_go() -> None:
    async with upstream() as engine, route(engine) as (process, client):
        engine.answer = stream_in_two(FIRST, LAST, asyncio.Event())
        async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as other:
            assert (await other.get("/health")).status_code == 200
            async with streaming(client):
                process.terminate()
                await until_ready_says(client, 503)
                engine.answer = Exchange.whole
                answer = await other.post(CHAT, content=BODY)
                assert (answer.status_code, answer.headers["connection"]) == (200, "close")
                late = await other.post(CHAT, content=BODY)
                assert (late.status_code, error_of(late)["code"]) == (503, "draining")


@pytest.mark.parametrize("signals", [1, 2], ids=["when its time is up", "at the second signal"])
async def test_a_stream_that_does_not_finish_is_cut(signals: int) -> None:
    async with (
        upstream() as engine,
        route(engine, "--shutdown-timeout", "0.1" if signals == 1 else "600") as (
            process,
            client,
        ),
    ):
        engine.answer = stream_in_two(FIRST, LAST, asyncio.Event())
        async with streaming(client) as pieces:
            process.terminate()
            if signals == 2:
                await until_ready_says(client, 503)
                process.terminate()
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(pieces)
        async with asyncio.timeout(60):
            await process.wait()
            await engine.exchanges[0].connection.gone.wait()
