"""Compressed bodies: decoded to what they were, whatever the pieces; and no few bytes become many."""

import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from headwater.http.encoding import decoder
from headwater.openai.errors import APIError, BadRequestError, RequestTooLargeError
from tests.router.front import front, post, read_answer
from tests.router.gateway import BODY, gateway
from tests.router.test_gateway_parser import POST, Parsed, split
from tests.router.upstream import upstream

MIB = 2**20
CODECS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": lambda data: zlib.compress(data, wbits=31),
    b"zstd": zstandard.ZstdCompressor().compress,
}
codecs = pytest.mark.parametrize("coding", list(CODECS))


def request(coding: bytes, body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\ncontent-encoding: %b\r\ncontent-length: %d\r\n\r\n%b" % (coding, len(body), body)


def most(coding: bytes, data: bytes, bound: int, piece: int) -> tuple[int, APIError | None]:
    """Bytes that come out before the end or an error, and that error."""
    decode = decoder(coding, bound)
    assert decode is not None
    out = 0
    try:
        for start in range(0, len(data), piece):
            out += len(decode.decode(data[start : start + piece]))
        decode.finish()
    except APIError as error:
        return out, error
    return out, None


@given(
    coding=st.sampled_from(list(CODECS)),
    body=st.binary(max_size=300) | st.integers(0, 3000).map(lambda size: b"ab" * size),
    cuts=st.lists(st.integers(0, 4000), max_size=6),
)
def test_a_body_is_decoded_whatever_the_pieces(coding: bytes, body: bytes, cuts: list[int]) -> None:
    parsed = Parsed(*split(request(coding, CODECS[coding](body)) + POST, cuts), max_body=8000)
    assert (parsed.statuses, parsed.bodies) == ([None, None], [body, b"hello"])
    assert not any(name == b"content-encoding" for name, _ in parsed.requests[0].headers)
    assert parsed.budget.in_flight == len(body) + 5
    parsed.let_go()
    assert parsed.budget.in_flight == 0


@codecs
def test_what_decodes_to_more_than_the_largest_body_is_a_413(coding: bytes) -> None:
    parsed = Parsed(request(coding, CODECS[coding](b"x" * 65)), POST)
    assert (parsed.statuses, parsed.budget.in_flight) == ([413, None], 5)
    assert Parsed(request(coding, CODECS[coding](b"x" * 64))).bodies == [b"x" * 64]


@codecs
def test_a_bomb_is_stopped_long_before_it_has_gone_off(coding: bytes) -> None:
    bomb = CODECS[coding](bytes(64 * MIB))
    for piece in (100, len(bomb)):
        out, error = most(coding, bomb, 32 * MIB, piece)
        assert isinstance(error, RequestTooLargeError)
        assert out <= MIB + 32 * len(bomb) < 8 * MIB


@codecs
def test_a_prompt_that_repeats_itself_is_no_bomb(coding: bytes) -> None:
    body = b"hello " * (MIB // 6)
    assert most(coding, CODECS[coding](body), 32 * MIB, 65_536) == (len(body), None)


@codecs
@pytest.mark.parametrize("damage", [lambda data: b"xx" + data, lambda data: data[:12] + b"\xff" * 20 + data[12:]])
def test_what_is_damaged_is_a_400(coding: bytes, damage: Callable[[bytes], bytes]) -> None:
    parsed = Parsed(request(coding, damage(CODECS[coding](b"hello " * 100))), POST, max_body=1000)
    assert parsed.statuses == [400, None]
    parsed.let_go()
    assert parsed.budget.in_flight == 0


def test_gzip_that_ends_too_early_or_goes_on_is_a_400() -> None:
    whole = CODECS[b"gzip"](b"hello")
    for body in (whole[:-1], whole + whole, b""):
        assert Parsed(request(b"gzip", body)).statuses == [400]
    out, error = most(b"gzip", whole + b"x", 100, len(whole))
    assert (out, type(error)) == (5, BadRequestError)


@given(frames=st.lists(st.binary(max_size=300) | st.just(b"ab" * 90_000), min_size=1, max_size=3), data=st.data())
def test_zstd_that_ends_too_early_is_told_so_wherever_that_is(frames: list[bytes], data: st.DataObject) -> None:
    pieces = [CODECS[b"zstd"](frame) for frame in frames]
    whole = b"".join(pieces)
    assert most(b"zstd", whole, MIB, len(whole)) == (sum(map(len, frames)), None)
    ends = {sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)}
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda size: size not in ends))
    _, error = most(b"zstd", whole[:cut], MIB, cut)
    assert isinstance(error, BadRequestError)
    assert "ends too early" in error.message


def test_a_zstd_frame_that_needs_much_memory_is_a_400() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=25)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert Parsed(request(b"zstd", stream.compress(b"hello") + stream.flush())).statuses == [400]


@pytest.mark.parametrize("coding", [b"br", b"deflate", b"gzip, gzip", b"x" * 500])
def test_other_encodings_are_refused_from_the_head(coding: bytes) -> None:
    parsed = Parsed(request(coding, b"hello")[:-5])
    assert parsed.statuses == [415]
    error = parsed.requests[0].error
    assert error is not None
    assert len(error.message) < 200


@pytest.mark.parametrize("coding", [b"identity", b"Identity", b""])
def test_a_body_that_is_not_encoded_may_say_so(coding: bytes) -> None:
    assert Parsed(request(coding, b"hello")).bodies == [b"hello"]


@codecs
async def test_an_endpoint_gets_the_decoded_body(coding: bytes) -> None:
    async with upstream() as engine, gateway(engine) as router:
        answer = await router.post(CODECS[coding](BODY), content_encoding=coding.decode())
        assert answer.status_code == 200
        assert engine.exchanges[0].body == BODY
        assert b"content-encoding" not in engine.exchanges[0].headers


async def test_an_encoding_that_is_not_known_is_answered_while_the_client_still_sends() -> None:
    async with front() as running:
        reader, writer = await running.connect()
        writer.write(post(b"x" * 1000, "content-encoding: br")[:-500])
        assert (await read_answer(reader))[0] == 415
        writer.write(b"x" * 500 + post(b"hello"))
        status, _, body = await read_answer(reader)
        assert (status, body) == (200, b"hello")
