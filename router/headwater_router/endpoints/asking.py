"""A question of the router's own to an endpoint, beside the requests of clients."""

import asyncio

from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.sends import Sends
from headwater_router.upstream.connection import Connection
from headwater_router.upstream.errors import AnswerTimeoutError, StaleConnectionError
from headwater_router.upstream.pool import Pool


async def ask(
    endpoint: Endpoint, pool: Pool, path: str, patience: float, most: int, body: bytes | None = None
) -> tuple[int, bytes]:
    """Status and body of the answer, of which at most about `most` bytes are read. Raises UpstreamError.

    A GET, or a POST with `body`, which is JSON. `patience`: seconds for all of it.
    """
    request = b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n" % (
        b"GET" if body is None else b"POST",
        endpoint.path,
        path.encode(),
        endpoint.authority,
        endpoint.key.header,
        b"" if body is None else b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body),
    )
    deadline = asyncio.get_running_loop().time() + patience
    connection: Connection | None = None
    try:
        sends = Sends()
        try:
            connection = await pool.ask(request, body or b"", deadline, patience, sends)
        except StaleConnectionError:
            connection = await pool.ask(request, body or b"", deadline, patience, sends)
        answer = await connection.read()
        if not connection.exhausted:
            async with asyncio.timeout_at(deadline):
                answer = await _rest(connection, answer, most)
    except (TimeoutError, AnswerTimeoutError):
        raise AnswerTimeoutError(f"no answer on {path} within {patience:g} s") from None
    finally:
        if connection is not None:
            connection.release()
    return connection.status, answer[:most]


async def _rest(connection: Connection, begun: bytes, most: int) -> bytes:
    answer = bytearray(begun)
    while len(answer) < most and (piece := await connection.read()):
        answer += piece
    return bytes(answer)
