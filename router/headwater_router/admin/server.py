"""The admin port's server: uvicorn in the router's own loop, bounded, and without a say in signals or logs."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from headwater_router.admin.app import make_app
from headwater_router.admin.controls import Controls, Pages
from headwater_router.admin.guard import Guard
from headwater_router.admission.keys import Keys
from headwater_router.config import RouterSettings

_MOST_CONNECTIONS: Final = 64
_PATIENCE: Final = 10.0
"""Seconds in which a connection has to bring a request, or to take an answer."""
_MOST_HEAD: Final = 16 * 1024
"""Bytes of a request's head."""
_LAST_BYTES: Final = 1
"""Seconds that running answers get at the end."""


class AdminServer:
    """Listens from its making on, and answers from `start` on."""

    def __init__(
        self,
        pages: Pages,
        controls: Controls,
        settings: RouterSettings,
        clients: Keys | None,
        admin_keys: Keys | None,
    ) -> None:
        """`clients`: the keys of the clients' port. `admin_keys`: those of this one. Raises OSError."""
        assert settings.admin_port is not None
        self._sockets = _listen(settings.admin_host, settings.admin_port)
        self.port: int = self._sockets[0].getsockname()[1]
        loopback = all(ip_address(each.getsockname()[0]).is_loopback for each in self._sockets)
        app = make_app(pages, controls, settings, clients, Guard(admin_keys, loopback=loopback))
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=_MOST_HEAD,
                timeout_graceful_shutdown=_LAST_BYTES,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._serving = asyncio.create_task(self._server.serve(self._sockets))

    async def close(self) -> None:
        """Running answers get a second."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        for each in self._sockets:
            each.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The router has handlers of its own."""
        yield


class _Connection(H11Protocol):
    """uvicorn's own waits for ever for a request, and opens as many connections as somebody likes."""

    _timer: asyncio.TimerHandle | None = None
    _last: object = None
    """The request that was there at the last look."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
        else:
            self._timer = self.loop.call_later(_PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        at_work: Any = self.cycle is not None and not self.cycle.response_started
        if self.cycle is self._last and not at_work:
            self.transport.abort()
            return
        self._last = self.cycle
        self._timer = self.loop.call_later(_PATIENCE, self._look)


def _listen(host: str, port: int) -> list[socket.socket]:
    """At each address that the host stands for. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            # With port 0 the first address takes a free one, and the others the same.
            chosen = listeners[0].getsockname()[1] if listeners else port
            listeners.append(socket.create_server((address[0], chosen), family=family))
    except OSError:
        for each in listeners:
            each.close()
        raise
    return listeners
