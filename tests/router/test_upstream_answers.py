"""What comes from an engine is one answer, within bounds, or it is malformed; nothing of it outlives its request."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_router.upstream.connection import Connection
from headwater_router.upstream.errors import ConnectionLostError, MalformedAnswerError, UpstreamError
from headwater_router.upstream.head import MOST_HEADERS, MOST_INFORMATIONAL, MOST_WITHOUT_BODY
from headwater_router.upstream.state import State
from tests.router.wires import Wires

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def whole(wires: Wires, asked: "asyncio.Task[Connection]") -> bytes:
    """The answer's body, which is there."""
    body = b""
    while not asked.result().exhausted:
        body += wires.read(asked)
    return body


def release(wires: Wires, asked: "asyncio.Task[Connection]") -> None:
    wires.do(asked.result().release)


# One answer after the other


def test_the_unread_body_of_an_answer_is_not_the_beginning_of_the_next() -> None:
    wires = Wires()
    failed = wires.ask()
    wires.send(answer(b"it is broken", 500))
    assert failed.result().status == 500
    release(wires, failed)
    again = wires.ask()
    wires.send(answer(b"it is well"))
    assert whole(wires, again) == b"it is well"
    assert len(wires.all) == 1, "all of it had come: no reason to close the connection"
    release(wires, again)
    wires.close()


def test_what_was_held_for_a_client_that_left_goes_to_nobody() -> None:
    wires = Wires()
    slow = wires.ask()
    wires.send(CHUNKED + b"5\r\nfirst\r\n")
    assert wires.read(slow) == b"first"
    wires.send(b"6\r\nsecond\r\n0\r\n\r\n")
    release(wires, slow)
    other = wires.ask()
    wires.send(answer(b"own"))
    assert whole(wires, other) == b"own"
    release(wires, other)
    wires.close()


def test_an_answer_that_is_still_on_its_way_ends_with_its_connection() -> None:
    wires = Wires()
    left = wires.ask()
    wires.send(CHUNKED + b"5\r\nfirst\r\n")
    release(wires, left)
    assert not wires.all[0].open and not wires.kept
    wires.close()


def test_a_connection_that_was_held_back_is_read_again_before_it_is_kept() -> None:
    wires = Wires()
    left = wires.ask()
    large = b"x" * 300_000
    wires.send(CHUNKED + b"%x\r\n%b\r\n" % (len(large), large))
    assert not wires.all[0].reading
    assert wires.read(left) == large
    wires.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large))
    release(wires, left)
    assert wires.kept == 1 and wires.all[0].reading
    wires.close()


def test_two_answers_in_one_segment_are_one_answer_and_the_end_of_the_connection() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(answer(b"one") + answer(b"two"))
    assert [value for name, value in asked.result().headers if name == b"content-length"] == [b"3"]
    assert whole(wires, asked) == b"one"
    release(wires, asked)
    assert not wires.kept and not wires.all[0].open
    wires.close()


@pytest.mark.parametrize("rest", [answer(b"two"), b"HTTP/1.1", b"junk", b"\0"])
@pytest.mark.parametrize("last", [b"", b"connection: close\r\n"], ids=["kept", "last"])
def test_bytes_behind_an_answer_end_the_connection_and_not_the_answer(rest: bytes, last: bytes) -> None:
    for together in (True, False):
        wires = Wires()
        asked = wires.ask()
        whole_answer = OK + last + b"content-length: 3\r\n\r\none"
        for segment in [whole_answer + rest] if together else [whole_answer, rest]:
            wires.send(segment)
        assert whole(wires, asked) == b"one"
        release(wires, asked)
        assert not wires.kept and not wires.all[0].open
        wires.close()


def test_bytes_on_a_kept_connection_close_it() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(answer(b""))
    release(wires, asked)
    assert wires.kept == 1
    wires.send(answer(b"late"))
    assert not wires.kept and not wires.all[0].open
    other = wires.ask()
    wires.send(answer(b"own"))
    assert whole(wires, other) == b"own"
    release(wires, other)
    wires.close()


def test_bytes_before_a_request_are_no_answer() -> None:
    wires = Wires()

    async def greeted() -> None:
        connection = Connection(wires.pool)
        await wires._connect(lambda: connection)
        connection.data_received(b"220 mail.example ESMTP\r\n")
        await connection.begin(b"GET / HTTP/1.1\r\n\r\n", b"", wires.now + 1, 1, wires.sends)

    with pytest.raises(MalformedAnswerError):
        wires.start(greeted()).result()
    assert wires.sends.made == 0
    assert wires.all[0].written == []
    wires.close()


def test_a_connection_that_the_engine_ends_is_no_longer_kept_in_that_very_moment() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(answer(b""))
    release(wires, asked)

    def end() -> int:
        wires.all[0].end()
        return wires.kept  # The loop has not told of the loss yet, only of the end.

    assert wires.do(end) == 0
    wires.close()


@pytest.mark.parametrize("last", [b"HTTP/1.1 200 OK\r\nconnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_a_connection_that_is_to_end_with_its_answer_is_not_kept(last: bytes) -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(last + b"content-length: 3\r\n\r\none")
    assert whole(wires, asked) == b"one"
    release(wires, asked)
    assert not wires.kept and not wires.all[0].open
    wires.close()


def test_an_answer_before_the_end_of_its_request_is_the_connections_last() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.all[0].unsent = 1
    wires.send(answer(b"too large", 413))
    assert whole(wires, asked) == b"too large"
    release(wires, asked)
    assert not wires.kept and not wires.all[0].open
    wires.close()


def test_mistakes_of_ours_are_told_and_not_passed_over() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(answer(b"one"))
    connection = asked.result()
    release(wires, asked)
    with pytest.raises(RuntimeError):
        wires.do(connection.release)
    with pytest.raises(RuntimeError):
        wires.start(connection.read()).result()
    wires.close()


# What is passed on


def test_headers_that_are_the_connections_own_are_not_passed_on() -> None:
    wires = Wires()
    asked = wires.ask()
    own = b"Connection: X-Own, keep-alive\r\nconnection: other\r\nX-Own: 1\r\nOther: 2\r\nKeep-Alive: timeout=5\r\n"
    wires.send(
        OK + own + b"Content-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\nx-trailer: 1\r\n\r\n"
    )
    assert asked.result().headers == [(b"content-type", b"a/b")]
    assert whole(wires, asked) == b"one"
    release(wires, asked)
    wires.close()


def test_the_length_of_an_answer_is_not_the_connections_own() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(OK + b"connection: content-length\r\ncontent-length: 9\r\n\r\none")
    wires.do(wires.all[0].end)
    assert wires.read(asked) == b"one"
    with pytest.raises(ConnectionLostError):
        wires.read(asked)
    release(wires, asked)
    wires.close()


def test_announcements_are_no_answer() -> None:
    wires = Wires()
    asked = wires.ask()
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\ncontent-length: 7\r\n\r\n"
    wires.send(CONTINUE + hints)
    assert not asked.done()
    wires.send(CONTINUE * (MOST_INFORMATIONAL - 2) + answer(b"one"))
    assert asked.result().headers == [(b"content-length", b"3")]
    assert whole(wires, asked) == b"one"
    release(wires, asked)
    assert wires.kept == 1
    wires.close()


@pytest.mark.parametrize("cut", [0, 40, 45, 50])
@pytest.mark.parametrize(
    "framing", [b"content-length: 7\r\n\r\nforeign", b"transfer-encoding: chunked\r\n\r\n7\r\nforeign\r\n0\r\n\r\n"]
)
def test_the_body_of_an_announcement_is_in_front_of_no_answer(framing: bytes, cut: int) -> None:
    wires = Wires()
    asked = wires.ask()
    sent = b"HTTP/1.1 199 X\r\n" + framing + answer(b"one")
    for piece in (sent[:cut], sent[cut:]):
        if not asked.done():
            wires.send(piece)
    assert isinstance(asked.exception(), MalformedAnswerError)
    wires.close()


def test_the_body_of_an_announcement_that_never_ends_is_not_kept() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(b"HTTP/1.1 199 X\r\ncontent-length: 1000000000\r\n\r\n")
    wires.send(bytes(1000))
    assert isinstance(asked.exception(), MalformedAnswerError)
    wires.close()


def test_an_answer_without_a_length_ends_with_its_connection_and_says_so() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(OK + b"\r\nall of ")
    wires.send(b"it")
    assert not asked.result().ended_by_close
    wires.do(wires.all[0].end)
    assert whole(wires, asked) == b"all of it"
    assert asked.result().ended_by_close
    release(wires, asked)
    wires.close()


LENGTH = OK + b"content-length: 9\r\n\r\n"


@pytest.mark.parametrize(
    ("cut", "how"),
    [
        (LENGTH + b"one", "end"),
        (LENGTH + b"one", "reset"),
        (CHUNKED + b"3\r\none\r\n", "end"),
        (CHUNKED + b"3\r\none\r\n", "reset"),
        (OK + b"\r\none", "reset"),  # Its end is the end of the connection, but not such a one.
    ],
)
def test_an_answer_that_is_cut_off_is_not_whole(cut: bytes, how: str) -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(cut)
    wires.do(getattr(wires.all[0], how))
    assert wires.read(asked) == b"one"
    with pytest.raises(ConnectionLostError):
        wires.read(asked)
    assert not asked.result().exhausted and not asked.result().ended_by_close
    release(wires, asked)
    wires.close()


# What is malformed

MANY = b"".join(b"x-%d: 1\r\n" % number for number in range(MOST_HEADERS + 1))
LARGE = b"x: " + b"y" * MOST_WITHOUT_BODY + b"\r\n"
UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\n"
MALFORMED = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "half a protocol": b"HTTP/1.1 OK 200\r\n\r\n",
    "upgrade": UPGRADE + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n\0\0\0",
    "upgrade without a protocol": UPGRADE + b"\r\n",
    "status 000": b"HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 X\r\ncontent-length: 0\r\n\r\n",
    "announced without end": CONTINUE * (MOST_INFORMATIONAL + 1),
    "large head": OK + LARGE + b"content-length: 3\r\n\r\none",
    "many headers": OK + MANY + b"content-length: 3\r\n\r\none",
    "many headers of its own": OK + b"te: x\r\n" * (MOST_HEADERS + 1) + b"\r\n",
    "length and chunks": OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
    "chunks and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\none\r\n0\r\n\r\n",
    "two lengths": OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\none",
    "negative length": OK + b"content-length: -3\r\n\r\none",
    "signed length": OK + b"content-length: +3\r\n\r\none",
    "endless length": OK + b"content-length: 99999999999999999999\r\n\r\none",
    "list of lengths": OK + b"content-length: 3, 3\r\n\r\none",
    "no length": OK + b"content-length:\r\n\r\none",
    "coding": OK + b"transfer-encoding: gzip\r\n\r\none",
    "coding before chunks": OK + b"transfer-encoding: gzip, chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
    "coding on a line before chunks": OK + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding after chunks": OK + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "folded header": OK + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "line end in a header": OK + b"a: b\rc\r\ncontent-length: 0\r\n\r\n",
    "zero in a header": OK + b"a: b\0c\r\ncontent-length: 0\r\n\r\n",
    "space in a name": OK + b"a b: c\r\ncontent-length: 0\r\n\r\n",
    "bare line ends": b"HTTP/1.1 200 OK\ncontent-length: 3\n\none",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("size", [1 << 20, 1000, 1], ids=["one segment", "segments", "bytes"])
def test_what_makes_no_sense_is_told_as_such_and_closes_the_connection(data: bytes, size: int) -> None:
    wires = Wires()
    asked = wires.ask()
    for at in range(0, len(data), size):
        if asked.done():
            break
        wires.all[0].send(data[at : at + size])
    wires.do(lambda: None)
    with pytest.raises(MalformedAnswerError) as raised:
        asked.result()
    assert str(raised.value) and wires.sends.made == 1 and not wires.sends.losses
    assert not wires.all[0].open
    wires.close()


ENDLESS = {
    "name of a header": (OK, b"x" * 1000),
    "value of a header": (OK + b"x: ", b"x" * 1000),
    "headers": (OK, b"x: " + b"y" * 995 + b"\r\n"),
    "reason": (b"HTTP/1.1 200 ", b"x" * 1000),
    "lines before the head": (b"", b"\r\n" * 500),
    "announcements": (b"", b"HTTP/1.1 102 X\r\nx: " + b"y" * 8000 + b"\r\n\r\n"),
    "extension of a chunk": (CHUNKED + b"1", b";x=" + b"y" * 997),
    "name of a trailer": (CHUNKED + b"1\r\nx\r\n0\r\n", b"x" * 1000),
    "value of a trailer": (CHUNKED + b"1\r\nx\r\n0\r\nx: ", b"x" * 1000),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"x: " + b"y" * 995 + b"\r\n"),
}


@pytest.mark.parametrize(("begin", "more"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_has_no_end_is_cut_off(begin: bytes, more: bytes) -> None:
    wires = Wires()
    wires.ask()
    wires.all[0].send(begin)
    sent = len(begin)
    while wires.all[0].open:
        assert sent <= MOST_WITHOUT_BODY + len(begin)
        wires.all[0].send(more)
        sent += len(more)
    assert wires.all[0].protocol.state is State.CLOSED
    wires.do(lambda: None)
    wires.close()


def test_a_long_answer_in_small_pieces_is_not_too_much() -> None:
    wires = Wires()
    asked = wires.ask()
    wires.send(CHUNKED)
    for _ in range(3000):
        wires.all[0].send(b"1;" + b"e" * 50 + b"\r\nx\r\n")
    wires.send(b"0\r\n\r\n")
    assert whole(wires, asked) == b"x" * 3000
    release(wires, asked)
    wires.close()


# Whatever comes

PIECES = [
    *(
        OK,
        CHUNKED,
        CONTINUE,
        UPGRADE,
        b"HTTP/1.1 204 X\r\n\r\n",
        b"HTTP/1.1 304 X\r\n\r\n",
        b"HTTP/2.0 ",
        answer(b"whole"),
    ),
    *(
        b"content-length: 5\r\n",
        b"connection: close\r\n",
        b"connection: x-own\r\n",
        b"x-own: 1\r\n",
        b"upgrade: h2c\r\n",
    ),
    *(b"transfer-encoding: chunked\r\n", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"5", b"hello", b"\0"),
    *(b"HTTP/0.9 200\r\n\r\n", b"ffffffffffffffff\r\n", b'1;x="y\r\n'),
]


@settings(max_examples=600)
@given(
    segments=st.lists(st.one_of(st.binary(max_size=20), st.lists(st.sampled_from(PIECES)).map(b"".join)), max_size=12)
)
def test_no_bytes_are_too_strange(segments: list[bytes]) -> None:
    wires = Wires()
    asked = wires.ask()
    wire = wires.all[0]
    for segment in segments:
        if wire.open and segment:
            wire.send(segment)  # Raises nothing.
    wires.do(wire.end)
    assert asked.done()
    if (error := asked.exception()) is None:
        connection = asked.result()
        assert all(name and not {*b"\r\n\0"} & {*name, *value} for name, value in connection.headers)
        assert sum(len(chunk) for chunk in connection._chunks) <= sum(len(segment) for segment in segments)
        release(wires, asked)
    else:
        assert isinstance(error, UpstreamError)
    assert not wire.open
    wires.close()
