"""Places for clients: shared out among addresses, and given back whatever happens while a client comes in."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.http.clients import State
from headwater.http.descriptors import Descriptors, Place
from headwater.http.seats import Seat, Seats
from tests.router.front import Front, front, post, read_answer
from tests.router.gateway import until

OPEN_FILES = 160
"""60 places for clients, of which one address may have 54; 32 in the anteroom, of which one may have half."""


@given(addresses=st.lists(st.integers(0, 3), max_size=300), most=st.none() | st.integers(1, 100))
def test_no_address_gets_all_places_and_all_are_given_back(addresses: list[int], most: int | None) -> None:
    descriptors = Descriptors(OPEN_FILES)
    seats = Seats(descriptors, most)
    taken: list[Seat] = []
    for number in addresses:
        place = descriptors.admit()
        if place is not None and (seat := seats.take(place, f"10.0.0.{number}")) is not None:
            taken.append(seat)
    for number in set(addresses):
        of_one = [seat.place for seat in taken if seat.client == f"10.0.0.{number}"]
        assert of_one.count(Place.ROOM) <= (54 if most is None else most)
        assert of_one.count(Place.ANTEROOM) <= descriptors.anteroom // 2
    assert descriptors.clients == sum(seat.place is Place.ROOM for seat in taken)
    for seat in taken:
        seats.give(seat)
    assert descriptors.clients == 0
    assert not seats._taken
    assert (
        sum(descriptors.admit_to_anteroom() is not None for _ in range(descriptors.anteroom + 1))
        == descriptors.anteroom
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_whoever_has_an_ipv6_address_has_its_subnet(one: str, other: str, same: bool) -> None:
    descriptors = Descriptors(OPEN_FILES)
    seats = Seats(descriptors, 1)
    places = []
    for client in (one, other):
        place = descriptors.admit()
        assert place is not None
        seat = seats.take(place, client)
        assert seat is not None
        places.append(seat.place)
    assert places == [Place.ROOM, Place.ANTEROOM if same else Place.ROOM]


async def test_an_address_that_has_its_share_is_told_so_and_others_are_served() -> None:
    async with front(open_files=OPEN_FILES, most_of_an_address=3) as running:
        for _ in range(3):
            await running.connect()
        await running.until_open(3)
        reader, writer = await running.connect()
        writer.write(post(b"hello"))
        assert (await read_answer(reader))[0] == 503
        reader, writer = await running.connect()
        writer.write(b"GET /health HTTP/1.1\r\n\r\n")
        assert (await read_answer(reader))[0] == 200
        await running.until_open(3)
        silent = [await running.connect() for _ in range(17)]
        # The last one does not get in at all.
        async with asyncio.timeout(60):
            assert await asyncio.wait_for(_end(silent[-1][0]), 60) == b""
        reader, writer = await running.connect("127.0.0.2")
        writer.write(post(b"hello"))
        assert (await read_answer(reader))[0] == 200


async def _end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


# Failures while a client comes in


async def _fails(*_: Any) -> None:
    raise OSError("no memory for a socket")


async def _is_cancelled(*_: Any) -> None:
    raise asyncio.CancelledError


async def _hangs(*_: Any) -> None:
    await asyncio.Event().wait()


class Loop:
    """A loop that cannot take connections over."""

    def __init__(self, take_over: Callable[..., Any]) -> None:
        self.connect_accepted_socket = take_over

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)


async def _ask_in_vain(running: Front) -> None:
    reader, writer = await running.connect()
    writer.write(b"GET /health HTTP/1.1\r\n\r\n")
    assert await _end(reader) == b""


@pytest.mark.parametrize("take_over", [_fails, _is_cancelled])
async def test_a_connection_that_fails_before_it_began_gives_its_place_back(take_over: Callable[..., Any]) -> None:
    async with front(open_files=OPEN_FILES) as running:
        server, descriptors = running.server, running.server._descriptors
        server._loop = Loop(take_over)  # type: ignore[assignment]
        for _ in range(100):
            await _ask_in_vain(running)
        await until(lambda: descriptors.clients == 0)
        assert not server._seats._taken
        assert not server._entering
        server._loop = asyncio.get_running_loop()
        reader, writer = await running.connect()
        writer.write(b"GET /health HTTP/1.1\r\n\r\n")
        assert (await read_answer(reader))[0] == 200


async def test_connections_that_are_coming_in_at_the_end_give_their_places_back() -> None:
    async with front() as running:
        running.server._loop = Loop(_hangs)  # type: ignore[assignment]
        _, writer = await running.connect()
        await until(lambda: len(running.server._entering) == 1)
        await running.server.close()
        await until(lambda: not running.server._entering)
        assert running.server._descriptors.clients == 0
        writer.close()


async def test_a_connection_that_is_given_up_while_it_begins_is_closed() -> None:
    async with front() as running:
        server = running.server

        async def late(protocol_factory: Callable[[], Any], client: socket.socket) -> None:
            await asyncio.get_running_loop().connect_accepted_socket(protocol_factory, client)
            raise OSError("too late")

        server._loop = Loop(late)  # type: ignore[assignment]
        reader, _ = await running.connect()
        assert await _end(reader) == b""
        await until(lambda: server._descriptors.clients == 0)
        assert not server.clients.open


async def test_a_client_that_vanishes_is_noticed_by_the_system() -> None:
    async with front() as running:
        _, writer = await running.connect()
        await until(lambda: running.count(State.IDLE) == 1)
        [connection] = running.server.clients.open
        assert connection._transport is not None
        client = connection._transport.get_extra_info("socket")
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
        writer.close()
