"""A router in the test's own process, with real sockets on both sides."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from headwater.http.descriptors import Descriptors
from headwater_router.app import Router
from headwater_router.config import RouterSettings
from tests.router.upstream import Upstream

CHAT = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):  # A hang; a machine with ten processes for each core takes a minute for some.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@dataclass(slots=True, eq=False)
class RunningGateway:
    router: Router
    port: int
    client: httpx.AsyncClient

    async def post(self, body: bytes = BODY, path: str = CHAT, **headers: str) -> httpx.Response:
        return await self.client.post(path, content=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    async def open(self, body: bytes = STREAM) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request over a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return reader, writer

    async def metric(self, sample: str) -> float:
        """The value of a sample of the metrics page, as in `name{label="value"}`; 0 where it is not there."""
        self.router.pages.forget()  # The page is made anew only now and then.
        page = (await self.client.get("/metrics")).text
        values = [line.rpartition(" ")[2] for line in page.splitlines() if line.rpartition(" ")[0] == sample]
        return float(values[0]) if values else 0.0

    @property
    def in_flight(self) -> int:
        return sum(endpoint.in_flight for endpoint in self.router.fleet)

    async def until_ready(self, count: int) -> None:
        await until(lambda: sum(endpoint.ready for endpoint in self.router.fleet) == count)


@asynccontextmanager
async def gateway(
    *engines: Upstream, ready: int | None = None, open_files: int = 20_000, backend: str = "vllm", **settings: Any
) -> AsyncIterator[RunningGateway]:
    """Named a, b, c, ... Waits until `ready` of them take requests (all, if not given).

    Nothing waits for room, unless `queue_requests` says so: what engines turn down is told at once."""
    flags = [f"{engine.url},name={name},backend={backend}" for engine, name in zip(engines, "abcdef", strict=False)]
    usual = {"probe_interval": 0.02, "policy": "round_robin", "expose_endpoint": True, "queue_requests": 0}
    settings = {"endpoint": flags} | usual | settings
    router = Router(RouterSettings(**settings), Descriptors(open_files))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    following = asyncio.create_task(router.follow_endpoints())
    router.server.start(listener)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
        running = RunningGateway(router, port, client)
        try:
            await running.until_ready(len(engines) if ready is None else ready)
            yield running
        finally:
            await router.server.close()
            following.cancel()
            await asyncio.wait([following])
            router.forwarder.close()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    content = json.loads(answer.content)
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert content["error"]["message"]
    return dict(content["error"])
