"""Requests that are made to cost more than their bytes: memory, objects, callbacks. All is held by counting."""

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.http.parser import Stage
from headwater.http.request import head_size
from tests.router.test_gateway_parser import CHUNKED, GET, LAST, OFFER, POST, Parsed, split

CHUNKED_HEAD = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = 65_536


def pieces(data: bytes) -> list[bytes]:
    return [data[start : start + PIECE] for start in range(0, len(data), PIECE)]


def test_a_body_of_many_small_chunks_is_kept_in_one_place() -> None:
    chunk = b"20\r\n" + b"x" * 32 + b"\r\n"
    parsed = Parsed(CHUNKED_HEAD, *pieces(chunk * 20_000), max_body=2**20)
    body = parsed.parser._body
    assert isinstance(body, bytearray)
    assert len(body) == parsed.budget.in_flight == 640_000
    assert body.__sizeof__() < 2 * len(body)
    parsed.parser.feed(b"0\r\n\r\n")
    assert parsed.bodies == [b"x" * 640_000]
    # Handed over, it is not here any more.
    assert (len(parsed.parser._body), parsed.parser._headers) == (0, [])


@pytest.mark.parametrize(
    "around",
    [b"1\r\nx\r\n", b"2\r\nxx\r\n", b"5\r\nxxxxx\r\n", b"1;" + b"e" * 100 + b"\r\nx\r\n", b"000000001\r\nx\r\n"],
    ids=["a byte", "two bytes", "five bytes", "extensions", "zeros"],
)
def test_a_body_with_more_around_it_than_in_it_is_a_400(around: bytes) -> None:
    parsed = Parsed(CHUNKED_HEAD, max_body=2**25, max_head=65_536, budget=2**25)
    fed = 0
    for piece in pieces(around * (2**22 // len(around))):
        parsed.parser.feed(piece)
        fed += len(piece)
        if parsed.parser.stage is Stage.ENDED:
            break
    assert parsed.statuses == [400]
    assert fed <= 8 * 65_536
    assert parsed.budget.in_flight == 0


def test_a_trailer_without_end_is_a_400() -> None:
    parsed = Parsed(CHUNKED_HEAD, b"5\r\nhello\r\n0\r\nx-long: ")
    for _ in range(40):
        parsed.parser.feed(b"x" * 100)
    assert parsed.statuses == [400]


def test_a_head_of_countless_headers_is_a_431_and_one_of_many_is_not() -> None:
    for count, status in ((250, None), (300, 431)):
        data = b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * count
        assert Parsed(data + b"\r\n", max_head=4096).statuses == [status]
        open_head = Parsed(data, max_head=4096)
        assert open_head.statuses == ([] if status is None else [431])
        open_head.let_go()
        assert open_head.budget.in_flight == 0


def test_heads_that_are_on_their_way_are_counted() -> None:
    parsed = Parsed(b"GET / HTTP/1.1\r\nx-long: ", b"x" * 5000, max_head=65_536, budget=10_000)
    assert parsed.budget.in_flight == 5024
    parsed.parser.feed(b"\r\n\r\n")
    [request] = parsed.requests
    assert parsed.budget.in_flight == head_size(request.target, request.headers) > 5000
    request.end()
    assert parsed.budget.in_flight == 0
    parsed.parser.feed(b"GET / HTTP/1.1\r\nx-long: " + b"x" * 9_000)
    parsed.parser.feed(b"x" * 5_000)
    assert parsed.statuses == [None, 503]
    parsed.let_go()
    assert parsed.budget.in_flight == 0


def test_thousands_of_requests_in_one_piece_are_not_kept() -> None:
    parsed = Parsed(b"GET / HTTP/1.1\r\n\r\n" * 10_000)
    assert parsed.statuses == [None] * 32 + [400]


@pytest.mark.parametrize("chunked", [False, True])
def test_what_exceeds_the_memory_for_bodies_is_a_503_that_says_when_to_come_back(chunked: bool) -> None:
    body = b"x" * 700
    told = b"transfer-encoding: chunked" if chunked else b"content-length: 700"
    sent = b"2bc\r\n" + body + b"\r\n0\r\n\r\n" if chunked else body
    request = b"POST / HTTP/1.1\r\n" + told + b"\r\n\r\n" + sent
    parsed = Parsed(request, request, max_body=1000, budget=1000)
    assert parsed.statuses == [None, 503]
    error = parsed.requests[1].error
    assert error is not None
    assert (error.code, error.retry_after) == ("overloaded", 1)
    assert parsed.budget.in_flight == 700
    # Once the first one has no need of its body any more, there is room for another.
    parsed.requests[0].drop_body()
    assert (parsed.requests[0].body, parsed.budget.in_flight) == (b"", 0)
    parsed.parser.feed(request)
    assert parsed.statuses == [None, 503, None]
    parsed.let_go()
    assert parsed.budget.in_flight == 0


def test_a_length_that_is_only_announced_takes_no_room() -> None:
    parsed = Parsed(b"POST / HTTP/1.1\r\ncontent-length: 900\r\n\r\nx", max_body=1000, budget=1000)
    assert parsed.budget.in_flight == 1


# Fuzz


VALID = [GET, POST, CHUNKED, OFFER, LAST, b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n",
         b"POST / HTTP/1.1\r\ncontent-encoding: gzip\r\ncontent-length: 25\r\n\r\n" + zlib.compress(b"hello", wbits=31),
         b"GET http://[::1/ HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]  # fmt: skip
TOKENS = [b"\r\n", b"\r", b"\n", b":", b" ", b"\0", b"\xff", b"chunked", b"content-length: 9", b"upgrade: x",
          b"transfer-encoding: chunked\r\n", b"expect: 100-continue\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n",
          b"content-encoding: zstd\r\n", b"HTTP/1.0", b"connection: close\r\n", b"%ff", b"?", b"//"]  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    data = bytearray(b"".join(chance.choice(VALID) for _ in range(chance.randrange(1, 4))))
    for _ in range(chance.randrange(6)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[place : place + chance.randrange(5)] = b""
            case 1:
                data[place:place] = chance.choice(TOKENS)
            case 2:
                data[place : place + 1] = chance.randbytes(chance.randrange(3))
            case _:
                data[place:place] = chance.choice(TOKENS) * chance.randrange(400)
    return bytes(data)


def check_anything(data: bytes, cuts: list[int]) -> None:
    """It ends in requests, each whole or with an error, and all that was held is given back."""
    parsed = Parsed(max_head=1024, max_body=256, budget=2000)
    for piece in split(data, cuts):
        parsed.parser.feed(piece)
        held = sum(request.held_head + request.held_body for request in parsed.requests)
        assert held <= parsed.budget.in_flight <= 2000
        assert len(parsed.parser._body) <= 256
        assert len(parsed.parser._headers) <= 256 or parsed.parser.stage is Stage.ENDED
    for request in parsed.requests[:-1]:
        assert request.keep_alive
    if parsed.parser.stage is Stage.ENDED:
        last = parsed.requests[-1]
        assert not last.keep_alive or last.error is not None
    parsed.let_go()
    assert parsed.budget.in_flight == 0


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=4))
def test_no_bytes_break_the_parser(data: bytes, cuts: list[int]) -> None:
    check_anything(data, cuts)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=3000)
def test_no_damaged_requests_break_the_parser(seed: int) -> None:
    chance = random.Random(seed)
    data = mutated(chance)
    check_anything(data, [chance.randrange(len(data) + 1) for _ in range(chance.randrange(5))])
