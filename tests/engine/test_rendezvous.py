"""Machines find one another in whatever order they come, and nobody who is not one of them is in the way."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
import torch
import zmq
from torch.distributed import PrefixStore

from headwater_engine.config import EngineSettings
from headwater_engine.distributed import rendezvous
from headwater_engine.distributed.line import LONGEST, Beat, Hello, Line, Refused
from headwater_engine.distributed.meet import find_ranks
from headwater_engine.distributed.place import Meeting, Place
from headwater_engine.distributed.rendezvous import Leader, join
from headwater_engine.distributed.store import GroupStore, StoreServer
from headwater_engine.errors import RankError, RendezvousError
from headwater_engine.worker.rank import StepTeller
from tests.engine.front import free_port

PATIENCE = 60  # seconds: a guard


def of_node(node: int, port: int, nodes: int = 2, **changes: Any) -> EngineSettings:
    shared = {"model": "m", "tensor_parallel_size": 6, "nodes": nodes, "leader": f"127.0.0.1:{port}"}
    return EngineSettings(**shared | {"node_rank": node} | changes)


def nothing(phase: str) -> None:
    """Nobody looks."""


@asynccontextmanager
async def leading(settings: EngineSettings) -> AsyncIterator[asyncio.Task[Any]]:
    """The task of node 0, which listens already."""
    said: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(Leader(settings).gather(said.put_nowait))
    async with asyncio.timeout(PATIENCE):
        await said.get()
        yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def connect(port: int) -> tuple[Line, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LONGEST)
    return Line(reader, writer), writer


def hello(port: int, nodes: int = 3, **changes: Any) -> Hello:
    return Hello(rendezvous.__version__, 1, rendezvous._shared(of_node(1, port, nodes)) | changes)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_nodes_may_start_in_any_order(order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_AGAIN", 0.01)
    port = free_port()
    tasks: dict[int, asyncio.Task[Any]] = {}
    async with asyncio.timeout(PATIENCE):
        for node in order:
            said: asyncio.Queue[str] = asyncio.Queue()
            settings = of_node(node, port, 3, threads=node + 1, log_level="error")  # which are a node's own affair
            start = join(settings, said.put_nowait) if node else Leader(settings).gather(said.put_nowait)
            tasks[node] = asyncio.create_task(start)
            await said.get()
        meeting, lines = await tasks[0]
        assert sorted(lines) == [1, 2]
        assert (meeting.store, meeting.steps) == (f"tcp://127.0.0.1:{port + 1}", f"tcp://127.0.0.1:{port + 2}")
        for node in (1, 2):
            told, line = await tasks[node]
            assert told == meeting
            lines[node].say(Beat(node))
            while (beat := await line.hear()) != Beat(node):  # which went on while it waited
                assert beat == Beat()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_num_seqs": 7}, "--max-num-seqs is 7 there, and 64 on node 0"),
        ({"node_rank": 2}, "there is no node 2 among 2"),
    ],
)
async def test_who_does_not_fit_is_told_why(changes: dict[str, Any], reason: str) -> None:
    port = free_port()
    async with leading(of_node(0, port)) as leader:
        settings = of_node(1, port, **changes)
        with pytest.raises(RendezvousError, match=f"Node {settings.node_rank} cannot join: {reason}"):
            await join(settings, nothing)
        assert not leader.done(), "node 0 goes on waiting for the right one"


async def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    async with leading(of_node(0, port)):
        line, _ = await connect(port)
        line.say(Hello("0.0.1", 1, {}))
        refused = await line.hear()
        assert isinstance(refused, Refused)
        assert refused.for_good
        assert "'0.0.1'" in refused.message


async def test_who_computes_with_other_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWATER_KERNELS", raising=False)
    port = free_port()
    async with leading(of_node(0, port)):
        line, _ = await connect(port)
        line.say(hello(port, nodes=2, HEADWATER_KERNELS="torch"))
        assert await line.hear() == Refused("HEADWATER_KERNELS is 'torch' there, and 'auto' on node 0", True)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 300_000,
        b"\x00\xff\n",
        b"{}\n",
        b"[" * 60_000 + b"\n",
        b'{"type":"beat"}\n',
    ],
    ids=["nothing", "HTTP", "no end", "bytes", "object", "deep", "no hello"],
)
async def test_what_a_stranger_sends_costs_its_own_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_SILENCE", 0.5)
    port = free_port()
    async with leading(of_node(0, port)) as leader:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        await asyncio.gather(leader, join(of_node(1, port), nothing))


async def test_strangers_take_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are none, of a machine that says that it is ours."""
    port = free_port()
    async with leading(of_node(0, port)) as leader:
        for strange in ({}, {"model": ["\n"] * 100}, {"unheard of": 1}, {"model": "m", "nodes": {"a": None}}):
            line, _ = await connect(port)
            line.say(Hello(rendezvous.__version__, 1, strange))
            assert isinstance(await line.hear(), Refused)
        await asyncio.gather(leader, join(of_node(1, port), nothing))


async def test_no_more_strangers_are_waited_for_than_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_STRANGERS", 2)
    port = free_port()
    async with leading(of_node(0, port)):
        silent = [await connect(port) for _ in range(2)]
        third, _ = await connect(port)
        assert await third.hear() is None
        silent[0][1].close()


async def test_a_node_that_left_may_come_again() -> None:
    port = free_port()
    async with leading(of_node(0, port, 3)) as leader:
        line, writer = await connect(port)
        line.say(hello(port))
        line.say(Beat())
        assert await line.hear() == Beat(), "it has been admitted"
        twin, _ = await connect(port)
        twin.say(hello(port))
        assert await twin.hear() == Refused("node 1 is there already", False)
        writer.close()
        joins = [join(of_node(node, port, 3), nothing) for node in (1, 2)]
        await asyncio.gather(leader, *joins)


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.05)
    port = free_port()
    with pytest.raises(RendezvousError, match="Node 1, 2 of 3 did not come within 0 seconds"):
        await Leader(of_node(0, port, 3)).gather(nothing)
    with pytest.raises(RendezvousError, match=r"Node 1 could not join node 0 at 127\.0\.0\.1:"):
        await join(of_node(1, port), nothing)


async def test_a_port_that_is_taken_is_named() -> None:
    port = free_port()
    async with leading(of_node(0, port)):
        with pytest.raises(RendezvousError, match=f"cannot wait for the other nodes on port {port}"):
            await Leader(of_node(0, port)).gather(nothing)


def test_a_port_of_the_group_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RankError, match=f"cannot listen on port {port}: [Aa]ddress already in use"):
            find_ranks(place(0, port), torch.device("cpu"))
        with pytest.raises(RankError, match=f"steps cannot be told to other ranks on port {port}: [Aa]ddress already"):
            StepTeller(Meeting("", f"tcp://127.0.0.1:{port}", "secret"))


def place(rank: int, port: int, secret: str = "secret") -> Place:
    return Place(rank, 2, 0, 1, Meeting(f"tcp://127.0.0.1:{port}", "", secret))


@contextmanager
def stores(port: int) -> Iterator[tuple[StoreServer, GroupStore, GroupStore]]:
    """Of the first rank, which listens there, and of another one."""
    server = StoreServer(place(0, port))
    both = GroupStore(place(0, port), server.shelf), GroupStore(place(1, port), None)
    try:
        yield server, *both
    finally:
        for each in both:
            each.settle()
        server.close()


def test_ranks_find_what_others_have_left() -> None:
    with stores(free_port()) as (_, own, other), ThreadPoolExecutor() as threads:
        later = threads.submit(PrefixStore("group", other).get, "address")  # by way of torch, as it does it
        PrefixStore("group", own).set("address", b"\x00here")
        assert later.result(PATIENCE) == b"\x00here"
        assert [store.add("count", 2) for store in (own, other, own)] == [2, 4, 6]
        assert own.check(["count"])
        assert not own.check(["count", "nothing"])
        with pytest.raises(TimeoutError, match="nobody has left nothing"):
            other.wait(["nothing"], timedelta(0))


def test_what_strangers_send_while_ranks_join_is_kept_nowhere() -> None:
    """Neither of one who speaks as ranks do, nor of one who just sends."""
    port = free_port()
    with stores(port) as (server, own, other):
        with zmq.Context() as context, context.socket(zmq.REQ) as stranger:
            monitor = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_DISCONNECTED)
            stranger.setsockopt(zmq.LINGER, 0)
            place(1, port, "guessed").meeting.connect(stranger, f"tcp://127.0.0.1:{port}")
            stranger.send(b"x" * 1_000_000, zmq.NOBLOCK)
            assert monitor.poll(1000 * PATIENCE), "he is cut off"
            stranger.disable_monitor()
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as flood, pytest.raises(ConnectionError):
            for _ in range(1000):
                flood.sendall(b"A" * 1_000_000)
        other.set("address", b"here")
        assert own.get("address") == b"here"
        assert server.shelf.keys() == ["address"]


def test_the_store_of_a_group_ends_once_all_have_joined() -> None:
    """Torch goes on asking it, and must not wait for an answer."""
    port = free_port()
    with stores(port) as (_, own, other):
        own.set("address", b"here")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)
    for store in (own, other):
        assert not store.check(["address"])
        store.set("status", b"well")
        assert store.get("status") == b"well"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_whoever_names_a_loopback_address_listens_nowhere_else(host: str) -> None:
    with zmq.Context() as context:
        for name in (host, "node-a"):
            with context.socket(zmq.REP) as listening:
                place(0, 0).meeting.listen(listening, f"tcp://{name}:0", 100)
                where = listening.getsockopt_string(zmq.LAST_ENDPOINT)
                assert ("127.0.0.1" in where) == (name == host)
