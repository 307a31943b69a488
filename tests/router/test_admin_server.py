"""The admin port: real sockets, bounded, in the router's loop, and gone when it is closed."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from headwater_router.admin import server as module
from headwater_router.admin.server import AdminServer
from headwater_router.admission.keys import Keys
from headwater_router.config import RouterSettings
from tests.router.controls import FakeControls, FakePages, load
from tests.router.gateway import until

KEY = "sk-admin-0123456789"


@asynccontextmanager
async def admin(
    controls: FakeControls, host: str = "127.0.0.1", keys: Keys | None = None
) -> AsyncIterator[AdminServer]:
    server = AdminServer(FakePages(), controls, RouterSettings(admin_host=host, admin_port=0), None, keys)
    server.start()
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture
def controls() -> FakeControls:
    return FakeControls()


async def test_it_answers_on_a_port_of_its_own(controls: FakeControls) -> None:
    async with admin(controls) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        assert (await client.get("/ready")).json() == {"status": "ready"}
        answer = await client.get("/admin/endpoints")
        assert [each["name"] for each in answer.json()] == ["a", "b"]
        assert "server" not in answer.headers
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


@pytest.mark.parametrize("host", ["localhost", "::1"])
async def test_a_loopback_address_is_known_by_what_it_stands_for(host: str, controls: FakeControls) -> None:
    async with admin(controls, host) as server, httpx.AsyncClient() as client:
        url = f"http://{'[::1]' if host == '::1' else host}:{server.port}/admin/models"
        assert (await client.get(url)).status_code == 200


async def test_on_all_addresses_it_is_closed_without_keys(controls: FakeControls, tmp_path: Path) -> None:
    async with admin(controls, "0.0.0.0") as server, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{server.port}"
        assert (await client.get(f"{url}/admin/endpoints")).status_code == 403
        assert (await client.get(f"{url}/metrics")).status_code == 200
    path = tmp_path / "admin.yaml"
    path.write_text(yaml.safe_dump({"keys": [{"name": "ops", "key": KEY}]}))
    async with admin(controls, "0.0.0.0", Keys(path)) as server, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{server.port}/admin/endpoints"
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers={"x-api-key": KEY})).status_code == 200


async def test_signals_stay_the_routers_own(controls: FakeControls) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    async with admin(controls) as server:
        await until(lambda: server._server.started)
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


async def test_a_taken_port_is_an_error_at_once(controls: FakeControls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = RouterSettings(admin_port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            AdminServer(FakePages(), controls, settings, None, None)


async def test_its_end_waits_for_nobody(controls: FakeControls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for a drain of ten minutes, one that sends half a request, and one that sends nothing."""
    controls.change("uid-1", load=load(1))
    async with admin(controls) as server:
        heads = [b"POST /admin/endpoints/a/drain?wait=600 HTTP/1.1\r\nhost: localhost\r\n\r\n", b"GET /re", b""]
        clients = [await asyncio.open_connection("127.0.0.1", server.port) for _ in heads]
        for (_, writer), head in zip(clients, heads, strict=True):
            writer.write(head)
        await until(lambda: bool(controls.done) and len(server._server.server_state.connections) == 3)
        await asyncio.wait_for(server.close(), 60)
        for reader, writer in clients:
            await asyncio.wait_for(reader.read(), 60)
            writer.close()


async def test_connections_are_bounded(controls: FakeControls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_CONNECTIONS", 3)
    async with admin(controls) as server:
        connections = server._server.server_state.connections
        clients: list[Any] = []
        for count in range(1, 4):
            clients.append(await asyncio.open_connection("127.0.0.1", server.port))
            await until(lambda count=count: len(connections) == count)  # type: ignore[misc]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(_read(reader), 60)
        writer.close()
        clients.pop()[1].close()
        await until(lambda: len(connections) == 2)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert (await client.get("/ready")).status_code == 200
        for _, writer in clients:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> None:
    if not await reader.read():
        raise ConnectionError


@pytest.mark.parametrize(
    "sent", [b"", b"GET /ready HTTP/1.1\r\nhost: a\r\n", b"GET /ready HTTP/1.1\r\nhost: a\r\n\r\n"]
)
async def test_who_sends_no_request_is_closed(sent: bytes, controls: FakeControls, monkeypatch) -> None:
    """Nor does a byte now and then keep a connection."""
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    async with admin(controls) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        dripping = asyncio.create_task(_drip(writer))
        try:
            async with asyncio.timeout(60):
                while await reader.read(1000):
                    pass
        except ConnectionError:
            pass
        dripping.cancel()
        writer.close()


async def _drip(writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(0.01)
        writer.write(b"a")


async def test_a_request_that_is_worked_on_is_not_closed(controls: FakeControls, monkeypatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    controls.change("uid-1", load=load(1))
    async with admin(controls) as server, httpx.AsyncClient(timeout=60) as client:
        url = f"http://127.0.0.1:{server.port}/admin/endpoints/a/drain?wait=600"
        waiting = asyncio.create_task(client.post(url))
        await until(lambda: bool(controls.done))
        for _ in range(10):
            await asyncio.sleep(0.01)  # Several looks.
        controls.change("uid-1", load=load(0))
        assert (await waiting).json()["drained"] is True


async def test_a_head_without_end_is_refused(controls: FakeControls) -> None:
    async with admin(controls) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer " + b"x" * 2**20)
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_a_body_is_neither_waited_for_nor_kept(controls: FakeControls) -> None:
    async with admin(controls) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = b"POST /admin/endpoints/a/cordon HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n"
        writer.write(head + b"x" * 2**20)
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 200 ")
        writer.close()
