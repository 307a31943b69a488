"""Silence has an end, where it is the engine's; and it is counted how often a request was sent."""

import asyncio

import pytest

from headwater_router.sends import Sends
from headwater_router.upstream.connection import Connection
from headwater_router.upstream.errors import (
    AnswerTimeoutError,
    ConnectionLostError,
    ConnectTimeoutError,
    StaleConnectionError,
    StalledError,
    UnreachableError,
    UpstreamError,
)
from tests.router.wires import REQUEST, Wires

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"content-length: 0\r\n\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
PIECE = b"1\r\nx\r\n"


def kept() -> Wires:
    """With one connection that was used and is kept."""
    wires = Wires()
    asked = wires.ask()
    wires.send(EMPTY)
    wires.do(asked.result().release)
    assert wires.kept == 1
    return wires


def reading(wires: Wires, asked: "asyncio.Task[Connection]") -> "asyncio.Task[bytes]":
    return wires.start(asked.result().read(lambda _: True))


# Time


def test_an_answer_that_does_not_begin_in_time_is_a_timeout() -> None:
    wires = Wires()
    asked = wires.ask(patience=30)
    wires.pass_time(29.9)
    assert not asked.done()
    wires.pass_time(0.2)
    assert isinstance(asked.exception(), AnswerTimeoutError)
    assert wires.sends.made == 1
    wires.close()


def test_a_head_is_not_the_beginning_that_is_waited_for() -> None:
    wires = Wires()
    asked = wires.ask(patience=30, stall=10)
    wires.send(CHUNKED)
    first = reading(wires, asked)
    wires.pass_time(29)
    assert not first.done()
    wires.pass_time(2)
    assert isinstance(first.exception(), AnswerTimeoutError)
    wires.close()


def test_an_answer_that_stops_after_it_began_has_stalled() -> None:
    wires = Wires()
    asked = wires.ask(patience=1000, stall=10)
    wires.pass_time(500)
    wires.send(CHUNKED + PIECE)
    assert wires.read(asked) == b"x"
    more = reading(wires, asked)
    for _ in range(20):
        wires.pass_time(9)
        wires.send(PIECE)
    assert not more.done()
    wires.pass_time(9.9)
    assert not more.done()
    wires.pass_time(0.2)
    assert isinstance(more.exception(), StalledError)
    assert not wires.all[0].open
    wires.close()


def test_the_deadline_of_a_first_byte_does_not_end_an_answer_that_began() -> None:
    wires = Wires()
    asked = wires.ask(patience=5, stall=10)
    wires.send(CHUNKED + PIECE)
    assert wires.read(asked) == b"x"
    more = reading(wires, asked)
    wires.pass_time(9)
    assert not more.done()
    wires.pass_time(2)
    assert isinstance(more.exception(), StalledError)
    wires.close()


def test_a_client_that_is_slow_is_not_the_engines_silence() -> None:
    wires = Wires()
    asked = wires.ask(stall=10)
    large = b"x" * 300_000
    wires.send(CHUNKED + b"%x\r\n%b\r\n" % (len(large), large))
    assert not wires.all[0].reading
    wires.pass_time(1000)
    wires.pass_time(9)
    assert wires.read(asked) == large
    more = reading(wires, asked)
    for _ in range(3):
        wires.pass_time(3)
        assert not more.done()
    wires.pass_time(2)
    assert isinstance(more.exception(), StalledError)
    wires.close()


def test_silence_is_not_counted_while_nothing_is_asked() -> None:
    wires = kept()
    wires.pass_time(1000)
    assert wires.kept == 1
    asked = wires.ask(patience=30)
    wires.pass_time(29)
    wires.send(EMPTY)
    assert wires.sends.made == 1
    wires.do(asked.result().release)
    wires.close()


def test_the_clock_is_not_wound_for_each_piece() -> None:
    wires = Wires()
    wound = []
    call_at = wires.loop.call_at
    wires.loop.call_at = lambda *args, **how: wound.append(args) or call_at(*args, **how)  # type: ignore
    for _ in range(100):
        asked = wires.ask()
        wires.send(CHUNKED + PIECE * 100)
        for _ in range(10):
            wires.send(PIECE * 10)
        wires.send(b"0\r\n\r\n")
        wires.do(asked.result().release)
    assert len(wires.all) == 1
    of_connecting = 1
    assert len(wound) - of_connecting <= 1
    wires.close()


def test_nothing_is_sent_when_there_is_no_time_left() -> None:
    wires = kept()
    with pytest.raises(AnswerTimeoutError):
        wires.ask(patience=0).result()
    assert wires.sends.made == 0
    assert wires.all[0].written == [REQUEST]
    wires.close()


@pytest.mark.parametrize(("patience", "expected"), [(100, ConnectTimeoutError), (3, AnswerTimeoutError)])
def test_connecting_has_an_end(patience: float, expected: type[UpstreamError]) -> None:
    wires = Wires()

    async def never(*where: object, **how: object) -> None:
        await asyncio.get_running_loop().create_future()

    wires.loop.create_connection = never  # type: ignore
    asked = wires.ask(patience=patience)
    wires.pass_time(2.9)
    assert not asked.done()
    wires.pass_time(2.2)
    assert isinstance(asked.exception(), expected)
    assert wires.sends.made == 0
    wires.close()


def test_when_bytes_came_last_is_known_also_of_connections_that_are_gone() -> None:
    wires = Wires()
    assert wires.pool.last_heard < wires.now - 1e9
    asked = wires.ask()
    wires.pass_time(1)
    wires.send(CHUNKED + PIECE)
    heard = wires.now
    wires.pass_time(1)
    assert asked.result().last_heard == wires.pool.last_heard == heard
    wires.do(asked.result().release)
    assert not wires.pool._open
    assert wires.pool.last_heard == heard
    wires.close()


# How often


def test_a_loss_after_the_request_was_sent_says_so() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.do(wires.all[0].reset)
    with pytest.raises(ConnectionLostError):
        asked.result()
    assert (wires.sends.losses, len(wires.all)) == ((1,), 1)
    wires.close()


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_kept_connection_that_was_closed_meanwhile_is_told_from_one_that_was_lost(how: str) -> None:
    wires = kept()
    asked = wires.ask()
    wires.do(getattr(wires.all[0], how))
    assert isinstance(asked.exception(), StaleConnectionError)
    assert (wires.sends.made, wires.sends.losses) == (1, (1,))
    again = wires.ask(sends=wires.sends)
    wires.send(EMPTY)
    assert (wires.sends.made, wires.sends.losses) == (2, (1,))
    assert wires.all[1].written == [REQUEST]
    wires.do(again.result().release)
    wires.close()


def test_a_request_that_was_lost_before_goes_over_a_new_connection() -> None:
    wires = kept()
    lost = Sends()
    lost.sent()
    lost.lost()
    wires.ask(sends=lost)
    wires.do(wires.all[1].reset)
    assert [len(wire.written) for wire in wires.all] == [1, 1]
    assert (lost.made, lost.losses, wires.kept) == (2, (1, 2), 1)
    wires.close()


def test_a_connection_that_ends_before_a_request_is_sent_loses_none() -> None:
    wires = Wires()

    async def hung_up_on() -> None:
        _, connection = await wires._connect(lambda: Connection(wires.pool))
        wires.all[0].end()
        await connection.begin(REQUEST, b"", wires.now + 1, 1, wires.sends)

    with pytest.raises(UnreachableError):
        wires.start(hung_up_on()).result()
    assert (wires.sends.made, wires.sends.losses) == (0, ())
    wires.close()


@pytest.mark.parametrize("before", [b"", b"H", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["later", "byte", "announcement"])
def test_a_request_that_the_engine_had_in_hand_is_not_sent_again(before: bytes) -> None:
    wires = kept()
    asked = wires.ask()
    if before:
        wires.send(before)
    else:
        wires.pass_time(2)
    wires.do(wires.all[0].reset)
    with pytest.raises(ConnectionLostError):
        asked.result()
    assert (wires.sends.losses, len(wires.all)) == ((1,), 1)
    wires.close()


def test_all_answers_of_an_endpoint_can_be_ended_and_none_is_asked_for_again() -> None:
    wires = kept()
    waiting = wires.ask()
    running = wires.ask()
    wires.send(CHUNKED + PIECE)
    done = wires.ask()
    wires.send(CHUNKED + PIECE + b"0\r\n\r\n")
    wires.do(wires.pool.fail_all, ConnectionLostError("it is gone"))
    assert len(wires.all) == 3 and not any(wire.open for wire in wires.all)
    assert isinstance(error := waiting.exception(), ConnectionLostError)
    assert str(error) == "it is gone"
    assert wires.read(running) == b"x"
    with pytest.raises(ConnectionLostError, match="it is gone") as raised:
        wires.read(running)
    assert raised.value is not error
    assert (wires.read(done), wires.read(done)) == (b"x", b""), "it was whole already"
    for asked in (running, done):
        wires.do(asked.result().release)
    wires.close()


def test_a_pool_that_is_closed_keeps_nothing() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.do(wires.pool.close)
    wires.send(EMPTY)
    wires.do(asked.result().release)
    wires.close()
