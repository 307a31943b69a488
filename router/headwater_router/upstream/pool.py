"""Connections to one address: one that is kept is taken before a new one is made."""

import asyncio
import errno
import math
import re
import socket
import ssl
from typing import Final

from headwater.http.descriptors import Descriptors
from headwater_router.sends import Sends
from headwater_router.upstream.connection import Connection
from headwater_router.upstream.errors import (
    AnswerTimeoutError,
    ConnectRefusedError,
    ConnectTimeoutError,
    InsecureError,
    NotConnectedError,
    OwnLimitError,
    UnreachableError,
    UpstreamError,
)

_OWN_LIMITS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


class Pool:
    """Connections to one address, those in use among them."""

    def __init__(
        self, host: str, port: int, connect_timeout: float, descriptors: Descriptors, tls: ssl.SSLContext | None = None
    ) -> None:
        """`connect_timeout`: seconds, the handshake of TLS included. With `tls`, the certificate is to be `host`'s."""
        self._host = host
        self._port = port
        self._connect_timeout = connect_timeout
        self._descriptors = descriptors
        self._tls = tls
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        self._closed = False
        self._heard_before = -math.inf
        """Over connections that are closed."""

    @property
    def last_heard(self) -> float:
        """When any bytes came from there last, in the loop's time: they prove life. -inf where none ever came."""
        return max([self._heard_before, *(each.last_heard for each in self._open)])

    async def ask(self, request: bytes, body: bytes, deadline: float, stall: float, sends: Sends) -> Connection:
        """Send a request; the connection that is returned has the head of its answer. Raises UpstreamError.

        `deadline`: for the first byte of the answer's body, in the loop's time. `stall`: seconds that may pass between
        two later pieces, unless we do not read because the client is slow. `sends`: of this request, wherever to.

        A kept connection may have been closed by the other side a moment ago: StaleConnectionError, where it is lost at
        once and nothing of an answer came. A request that was lost before goes over a new one, whose loss leaves no
        doubt.
        """
        connection = None if sends.losses else self._take()
        if connection is None:
            connection = await self._connect(deadline)
        await connection.begin(request, body, deadline, stall, sends)
        return connection

    async def _connect(self, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        self._descriptors.make_room()
        patience = loop.time() + self._connect_timeout
        try:
            async with asyncio.timeout_at(min(patience, deadline)):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            if deadline < patience:
                raise AnswerTimeoutError("there was no time left to connect to the endpoint") from None
            raise ConnectTimeoutError("the endpoint did not accept a connection in time") from None
        except (OSError, ValueError, OverflowError) as error:
            raise _why_not(error) from None
        return connection

    def _take(self) -> Connection | None:
        # The one that was used last is the least likely to have been closed meanwhile.
        if not self._idle:
            return None
        connection, _ = self._idle.popitem()
        self._descriptors.unkeep(connection)
        return connection

    def fail_all(self, error: UpstreamError) -> None:
        """Nobody is there any more: end all answers that are on their way with such an error, and keep nothing."""
        for connection in list(self._open):
            # One for each: where an error was raised is written to it.
            connection.fail(type(error)(*error.args))

    def close(self) -> None:
        """Close the idle ones, and keep none from now on; those in use close when their answers end."""
        self._closed = True
        while (connection := self._take()) is not None:
            connection.close()

    # What connections call

    def add(self, connection: Connection) -> None:
        """It is open."""
        self._open.add(connection)

    def put(self, connection: Connection) -> None:
        """Keep it for the next request."""
        if self._closed:
            connection.close()
            return
        self._idle[connection] = None
        self._descriptors.keep(connection, asyncio.get_running_loop().time())

    def discard(self, connection: Connection) -> None:
        """It is closed."""
        if connection in self._open:
            self._open.remove(connection)
            self._heard_before = max(self._heard_before, connection.last_heard)
        if connection in self._idle:
            del self._idle[connection]
            self._descriptors.unkeep(connection)


def _why_not(error: Exception) -> NotConnectedError:
    """The one border where the system's errors, and those of TLS, become ours."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return InsecureError(f"the endpoint's certificate is not to be trusted: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return InsecureError(f"there is no TLS with the endpoint: {reason}")
    if isinstance(error, socket.gaierror):
        return UnreachableError(f"the endpoint's name was not found: {reason}")
    errors = _errors_of(error)
    if errors & _OWN_LIMITS:
        return OwnLimitError(f"the router can open no further connection: {reason}")
    if errno.ECONNREFUSED in errors:
        return ConnectRefusedError(f"nobody listens at the endpoint's address: {reason}")
    return UnreachableError(f"the endpoint cannot be reached: {reason}")


def _errors_of(error: Exception) -> set[int]:
    """Where a name has several addresses, the loop tells of what happened at each only in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return {error.errno}
    return {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))}
