"""The router's HTTP server alone, before a handler of the test's own."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from headwater.http.bodies import BodyBudget
from headwater.http.clients import State
from headwater.http.connection import ClientConnection
from headwater.http.descriptors import Descriptors
from headwater.http.request import Head, Request
from headwater.http.server import Server
from headwater.openai.errors import APIError
from tests.router.gateway import until

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Handle = Callable[[Request, ClientConnection], Awaitable[None]]


async def echo(request: Request, client: ClientConnection) -> None:
    """Answers with the body, or with what is wrong."""
    if request.error is not None:
        client.answer(request.error.status, [], json.dumps(request.error.body()).encode())
    else:
        client.answer(200, [(b"x-path", request.path.encode())], request.body)


@dataclass(slots=True, eq=False)
class Front:
    server: Server
    port: int
    requests: list[Request] = field(default_factory=list)
    """Those that were handed over."""
    handled: list[Request] = field(default_factory=list)
    """Those whose handler has ended."""
    writers: list[Writer] = field(default_factory=list)

    async def connect(self, source: str = "127.0.0.1") -> tuple[Reader, Writer]:
        """From any address of the loopback network."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        self.writers.append(writer)
        return reader, writer

    def count(self, state: State) -> int:
        """Connections that are in it."""
        return sum(connection.state is state for connection in self.server.clients.open)

    async def until_open(self, count: int) -> None:
        await until(lambda: len(self.server.clients.open) == count)

    def tick(self, seconds: float) -> None:
        """Look at the connections as after so many seconds in which nothing has happened."""
        clients = self.server.clients
        times = [since for filed in (*clients.since.values(), clients.unread) for since in filed.values()]
        clients.tick(max(times, default=0) + seconds)


@asynccontextmanager
async def front(
    handle: Handle = echo, *, open_files: int = 20_000, limit: int = 2**20, **settings: Any
) -> AsyncIterator[Front]:
    """`limit`: bytes of bodies. In the end nothing may be held of anything that was taken."""
    requests: list[Request] = []
    handled: list[Request] = []

    async def count(request: Request, client: ClientConnection) -> None:
        requests.append(request)
        try:
            await handle(request, client)
        finally:
            handled.append(request)

    descriptors = Descriptors(open_files)
    settings = {"max_head": 2048, "max_body": limit, "bodies": BodyBudget(limit)} | settings
    server = Server(count, descriptors, **settings)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    running = Front(server, listener.getsockname()[1], requests, handled)
    server.start(listener)
    try:
        yield running
    finally:
        for writer in running.writers:
            writer.close()
        await server.close()
        await until(lambda: (descriptors.clients, settings["bodies"].in_flight) == (0, 0))
        assert not any(server.clients.since.values())
        assert not server.clients.unread


async def read_answer(reader: Reader) -> tuple[int, dict[str, str], bytes]:
    """Of one whose length is told."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split(" ")[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))


def post(body: bytes, *headers: str, path: str = "/v1/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: gateway", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Counted:
    """Lets in whom `verdict` lets in, and counts what is taken up and given back."""

    headers: Mapping[str, str] = {}

    def __init__(self, verdict: Callable[[Head], APIError | None] = lambda head: None) -> None:
        self.verdict = verdict
        self.heads: list[Head] = []
        self.taken = 0
        self.given = 0

    def __call__(self, head: Head) -> "Counted":
        self.heads.append(head)
        if (error := self.verdict(head)) is not None:
            raise error
        self.taken += 1
        return self

    def release(self) -> None:
        self.given += 1
