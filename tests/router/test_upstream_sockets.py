"""The client for engines over real sockets and both event loops: how connections begin, end, and are secured."""

import asyncio
import errno
import inspect
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import trustme
import uvloop

from headwater.http.descriptors import Descriptors
from headwater_router.sends import Sends
from headwater_router.upstream.errors import (
    ConnectionLostError,
    ConnectRefusedError,
    InsecureError,
    NotConnectedError,
    OwnLimitError,
    StaleConnectionError,
    UnreachableError,
    UpstreamError,
)
from headwater_router.upstream.pool import Pool, _why_not

REQUEST = b"POST / HTTP/1.1\r\nhost: engine\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"

Engine = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def on_both_loops(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """The router runs on uvloop, whose sockets and TLS are its own."""

    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **given: object) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(test(**given))

    own = inspect.signature(run).parameters["loop_factory"]
    parameters = [own, *inspect.signature(test).parameters.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__dict__.update(test.__dict__)
    loops = pytest.mark.parametrize(
        "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    return loops(run)


def saying(answer: bytes, *, reset: bool = False) -> Engine:
    """Answers each request so, and then ends the connection unless the answer tells its length."""

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(answer)
            await writer.drain()
            if b"content-length" not in answer:
                break
        if reset:
            await reader.readuntil(b"go")  # What was written has arrived.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()

    return answer_all


@asynccontextmanager
async def engine(answer: Engine, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def pool(port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Pool]:
    descriptors = Descriptors(1000)
    made = Pool(host, port, 30, descriptors, tls)
    try:
        yield made
    finally:
        made.close()
        async with asyncio.timeout(60):
            while made._open:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert not descriptors._kept


async def body_of(pool: Pool) -> bytes:
    connection = await ask(pool)
    try:
        body = b""
        while piece := await connection.read():
            body += piece
        return body
    finally:
        connection.release()


async def ask(pool: Pool, sends: Sends | None = None):  # type: ignore[no-untyped-def]
    return await pool.ask(REQUEST, b"", asyncio.get_running_loop().time() + 30, 30, sends or Sends())


# How answers end


@on_both_loops
async def test_an_answer_without_a_length_is_whole_when_the_engine_ends_it() -> None:
    async with engine(saying(OK + b"\r\nall of it")) as port, pool(port) as asked:
        connection = await ask(asked)
        body = b""
        while piece := await connection.read():
            body += piece
        assert (body, connection.ended_by_close) == (b"all of it", True)
        connection.release()


@on_both_loops
async def test_an_answer_without_a_length_that_ends_by_a_reset_is_not_whole() -> None:
    async with engine(saying(OK + b"\r\nhalf of", reset=True)) as port, pool(port) as asked:
        connection = await ask(asked)
        assert await connection.read() == b"half of"
        connection._transport.write(b"go")
        with pytest.raises(ConnectionLostError):
            await connection.read()
        connection.release()


@on_both_loops
async def test_an_engine_that_is_gone_is_noticed_by_the_system() -> None:
    async with engine(saying(OK + b"content-length: 3\r\n\r\none")) as port, pool(port) as asked:
        connection = await ask(asked)
        connected = connection._transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.release()


@on_both_loops
async def test_a_connection_that_the_engine_closes_without_a_word_loses_no_request() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"content-length: 3\r\n\r\none")
        writer.close()

    async with engine(once) as port, pool(port) as asked:
        for _ in range(20):
            sends = Sends()
            try:
                connection = await ask(asked, sends)
            except StaleConnectionError:
                connection = await ask(asked, sends)
            assert await connection.read() == b"one"
            connection.release()


@on_both_loops
async def test_running_answers_can_be_ended_from_outside() -> None:
    async with engine(saying(OK + b"content-length: 9\r\n\r\none")) as port, pool(port) as asked:
        connections = [await ask(asked) for _ in range(3)]
        for connection in connections:
            assert await connection.read() == b"one"
        readers = [asyncio.create_task(connection.read()) for connection in connections]
        await asyncio.sleep(0)
        asked.fail_all(ConnectionLostError("it does not answer probes"))
        for reader in readers:
            with pytest.raises(ConnectionLostError, match="does not answer probes"):
                await reader


@on_both_loops
async def test_what_was_held_for_a_slow_client_can_be_read_after_the_end() -> None:
    large = b"x" * 4_000_000
    async with engine(saying(OK + b"content-length: 9000000\r\n\r\n" + large)) as port, pool(port) as asked:
        connection = await ask(asked)
        async with asyncio.timeout(60):
            while not connection._paused:  # noqa: ASYNC110
                await asyncio.sleep(0)
        asked.fail_all(ConnectionLostError("it does not answer probes"))
        assert large.startswith(await connection.read())
        with pytest.raises(ConnectionLostError):
            await connection.read()
        connection.release()


# How connections begin


@on_both_loops
async def test_a_port_where_nobody_listens_is_refused_also_under_a_name_of_several_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        async with pool(port, host) as asked:
            with pytest.raises(ConnectRefusedError):
                await ask(asked)


@on_both_loops
@pytest.mark.parametrize("host", ["a..b", "x" * 64, "a\0b"])
async def test_a_name_that_is_none_is_an_error_like_others(host: str) -> None:
    async with pool(80, host) as asked:
        with pytest.raises(UnreachableError):
            await ask(asked)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), ConnectRefusedError),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed (), [Errno 101] ()"), ConnectRefusedError),
        (OSError("Multiple exceptions: [Errno 113] Connect call failed (), [Errno 101] ()"), UnreachableError),
        (OSError(errno.EHOSTUNREACH, "No route to host"), UnreachableError),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), UnreachableError),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), UnreachableError),
        (OSError(errno.EMFILE, "Too many open files"), OwnLimitError),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), OwnLimitError),
        (ssl.SSLError(1, "wrong version number"), InsecureError),
        (OverflowError("port must be 0-65535."), UnreachableError),
    ],
)
def test_each_way_of_not_being_connected_has_its_name(error: Exception, expected: type[UpstreamError]) -> None:
    ours = _why_not(error)
    assert type(ours) is expected
    assert isinstance(ours, NotConnectedError) and str(ours)


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def trusting(*authorities: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities:
        authority.configure_trust(context)
    return context


@on_both_loops
async def test_an_engine_is_asked_over_tls_and_its_connection_kept(authority: trustme.CA) -> None:
    large = b"x" * 1_000_000
    answer = saying(OK + b"content-length: %d\r\n\r\n" % len(large) + large)
    for host in ("127.0.0.1", "localhost"):
        async with engine(answer, serving(authority, host)) as port, pool(port, host, trusting(authority)) as asked:
            for _ in range(3):
                assert await body_of(asked) == large
            assert len(asked._open) == 1


@on_both_loops
@pytest.mark.parametrize("fault", ["nobody vouches for it", "of another host"])
async def test_a_certificate_that_is_not_to_be_trusted_gets_no_request(authority: trustme.CA, fault: str) -> None:
    received = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    vouched = fault != "nobody vouches for it"
    server = serving(authority, "127.0.0.1" if not vouched else "elsewhere.example")
    client = trusting(authority) if vouched else trusting()
    async with engine(record, server) as port, pool(port, tls=client) as asked:
        with pytest.raises(InsecureError, match="certificate"):
            await ask(asked)
    assert not any(received)


@on_both_loops
async def test_an_engine_that_speaks_no_tls_is_told_from_one_that_is_not_there(authority: trustme.CA) -> None:
    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with engine(speak_http) as port, pool(port, tls=trusting(authority)) as asked:
        with pytest.raises(InsecureError):
            await ask(asked)


@on_both_loops
async def test_an_answer_over_tls_that_is_cut_off_is_not_whole(authority: trustme.CA) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"content-length: 9\r\n\r\nhalf of")
        await reader.readuntil(b"go")
        writer.transport.abort()

    async with engine(cut, serving(authority, "127.0.0.1")) as port, pool(port, tls=trusting(authority)) as asked:
        connection = await ask(asked)
        assert await connection.read() == b"half of"
        connection._transport.write(b"go")
        with pytest.raises(ConnectionLostError):
            await connection.read()
        connection.release()


@on_both_loops
async def test_an_answer_over_tls_is_whole_when_the_engine_ends_it(authority: trustme.CA) -> None:
    answer = saying(OK + b"\r\nall of it")
    async with engine(answer, serving(authority, "127.0.0.1")) as port, pool(port, tls=trusting(authority)) as asked:
        assert await body_of(asked) == b"all of it"
