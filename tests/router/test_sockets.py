"""A node that vanished is noticed: the system asks whether it is still there."""

import socket

import pytest

from headwater.http.sockets import keep_alive

EXPECTED = {
    "SO_KEEPALIVE": (socket.SOL_SOCKET, 1),
    "TCP_NODELAY": (socket.IPPROTO_TCP, 1),
    "TCP_KEEPIDLE": (socket.IPPROTO_TCP, 15),
    "TCP_KEEPINTVL": (socket.IPPROTO_TCP, 5),
    "TCP_KEEPCNT": (socket.IPPROTO_TCP, 3),
    "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, 30_000),
}


@pytest.mark.parametrize("name", [name for name in EXPECTED if hasattr(socket, name)])
def test_a_connection_asks_whether_the_other_side_is_there(name: str) -> None:
    level, value = EXPECTED[name]
    with socket.socket() as connected:
        keep_alive(connected)
        assert connected.getsockopt(level, getattr(socket, name)) == value


def test_what_is_closed_or_no_tcp_is_left_as_it_is() -> None:
    closed = socket.socket()
    closed.close()
    keep_alive(closed)
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        keep_alive(one)
        one.sendall(b"x")
        assert other.recv(1) == b"x"
