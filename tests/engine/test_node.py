"""A machine without the first rank, in this process: what it says when it is told to go, and to whom."""

import asyncio
from typing import Any

import pytest

from headwater_engine.config import EngineSettings
from headwater_engine.distributed.line import LONGEST, Beat, Cause, Failed, Line
from headwater_engine.distributed.place import Meeting
from headwater_engine.server import node
from headwater_engine.server.node import NodeServer
from tests.engine.front import free_port

PATIENCE = 60  # seconds: a guard


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_node_that_is_told_to_end_says_so_to_node_0(signals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on for --shutdown-timeout after the first signal, and at once after a second one."""
    arrived: asyncio.Queue[Line] = asyncio.Queue()
    started = asyncio.Event()

    async def join(settings: EngineSettings, tell: Any) -> tuple[Meeting, Line]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LONGEST)
        return Meeting("", "", "secret"), Line(reader, writer)

    async def start_ranks(*args: Any) -> None:
        started.set()

    monkeypatch.setattr(node, "join", join)
    monkeypatch.setattr(node, "start_ranks", start_ranks)
    listener = await asyncio.start_server(
        lambda reader, writer: arrived.put_nowait(Line(reader, writer)), "127.0.0.1", 0, limit=LONGEST
    )
    port = listener.sockets[0].getsockname()[1]
    settings = EngineSettings(
        model="m",
        tensor_parallel_size=2,
        nodes=2,
        node_rank=1,
        leader="127.0.0.1:1",
        port=free_port(),
        shutdown_timeout=0 if signals == 1 else 600,
    )
    server = NodeServer(settings)
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(PATIENCE):
        first = await arrived.get()
        await started.wait()
        for _ in range(signals):
            server._take_signal()
        while (said := await first.hear()) == Beat():
            pass
        assert said == Failed("Node 1 was told to end.", Cause.GONE)
        assert await running == 0
        assert await first.hear() is None, "and then it is gone"
    listener.close()
    await first.close()
