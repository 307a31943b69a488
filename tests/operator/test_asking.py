"""What runs in a pod may answer as it likes: the operator of the whole cluster waits so long, and reads so much."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from headwater import backends
from headwater_operator.asking import EndlessError, ask
from headwater_operator.autoscaling.gateway import ask_gateways
from headwater_operator.cluster.kinds import Key
from headwater_operator.reconcile import adapter_sync, fetch_progress
from headwater_operator.reconcile.adapter_sync import Wanted, sync_adapters
from headwater_operator.reconcile.errands import Errands

GUARD = 60.0
"""Seconds after which a test that hangs has failed."""


async def dribble() -> AsyncIterator[bytes]:
    """Each piece comes in time, and the last one never does."""
    while True:
        yield b" "
        await asyncio.sleep(0.01)


async def flood() -> AsyncIterator[bytes]:
    piece = b"x" * 2**20
    while True:
        yield piece
        await asyncio.sleep(0)


def peer(body: Callable[[], AsyncIterator[bytes]], status: int = 200) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: httpx.Response(status, content=body())), base_url="http://pod"
    )


async def told(client: httpx.AsyncClient) -> str:
    """Of a pod that fetches weights."""
    pod = {"metadata": {"uid": "1"}, "status": {"phase": "Running", "podIP": "10.0.0.9"}}
    errands = Errands(lambda key: None)
    progress = fetch_progress.FetchProgress(client, errands)
    progress.of(Key("default", "m"), [pod])
    await asyncio.gather(*errands.under_way)
    return str(progress.of(Key("default", "m"), [pod]))


async def loaded(client: httpx.AsyncClient) -> str:
    """Of an engine, which is asked for its adapters."""
    (state,) = await sync_adapters(backends.get("vllm"), "http://pod", Wanted({"a": "owner/a"}, {}), client)
    return state.message


async def reported(client: httpx.AsyncClient) -> str:
    """Of a router."""
    report = await ask_gateways(client, ["http://pod"], seconds=0.2)
    return report.failures["http://pod"]


@pytest.mark.parametrize(
    ("question", "slow", "endless"),
    [
        (told, "None", "None"),
        (loaded, "the engine did not answer within 0.2 s", "the engine's answer has no end"),
        (reported, "no answer within 0.2 s", "its metrics page has no end"),
    ],
)
@pytest.mark.parametrize("status", [200, 500])
async def test_whoever_never_ends_is_given_up(
    question: Callable[[httpx.AsyncClient], Awaitable[str]],
    slow: str,
    endless: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch_progress, "_TIMEOUT", 0.2)
    monkeypatch.setattr(adapter_sync, "_LIST_SECONDS", 0.2)
    async with asyncio.timeout(GUARD), peer(dribble, status) as client:
        assert await question(client) == slow
    monkeypatch.setattr(adapter_sync, "_LIST_SECONDS", GUARD)
    if question is not reported:  # 16 MiB may take longer than its 0.2 seconds
        async with asyncio.timeout(GUARD), peer(flood, status) as client:
            assert await question(client) == endless


async def test_an_answer_is_counted_as_it_is_unpacked() -> None:
    packed = gzip.compress(b"x" * 2**20)
    assert len(packed) < 4096

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, content=packed)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(EndlessError):
            await ask(client, "http://pod/", seconds=GUARD, most=4096)
        assert len((await ask(client, "http://pod/", seconds=GUARD, most=2**20)).body) == 2**20
