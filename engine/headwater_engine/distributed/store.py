"""Where ranks on several machines leave their addresses for one another as they join.

torch.distributed wants a store for that. Its own, over TCP, keeps whatever anybody sends and shows it to everybody.
This one speaks ZMQ under the group's key: who does not know the secret gets no further than the handshake, and nothing
of his is kept. Once all have joined nobody has anything to tell any more, and it listens no longer.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import msgspec
import zmq
from torch._C._distributed_c10d import FileStore, Store

from headwater_engine.distributed.place import Place
from headwater_engine.errors import RankError

_LONGEST: Final = 64 * 1024
"""Bytes of a request."""
_LOOK: Final = 0.01
"""Seconds between two looks for what somebody has not left yet."""
_ATTENTION: Final = 100
"""Milliseconds after which who waits for a message looks whether it is still wanted."""


class Put(msgspec.Struct, tag=True):
    key: str
    value: bytes


class Add(msgspec.Struct, tag=True):
    key: str
    amount: int


class Look(msgspec.Struct, tag=True):
    key: str


_decode_request = msgspec.msgpack.Decoder(Put | Add | Look).decode
_decode_answer = msgspec.msgpack.Decoder(bytes | None).decode
_encode = msgspec.msgpack.Encoder().encode


class Shelf:
    """What was left, by key."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def keys(self) -> list[str]:
        return list(self._values)

    def answer(self, request: Put | Add | Look) -> bytes | None:
        """What stands there afterwards. A number is text."""
        with self._lock:
            match request:
                case Put(key, value):
                    self._values[key] = value
                case Add(key, amount):
                    self._values[key] = b"%d" % (int(self._values.get(key, 0)) + amount)
            return self._values.get(request.key)


class StoreServer:
    """The first rank's side: a shelf, and a thread that answers the others from it."""

    def __init__(self, place: Place) -> None:
        """Raises RankError where the port is taken."""
        self.shelf = Shelf()
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            place.meeting.listen(self._socket, place.meeting.store, _LONGEST)
        except zmq.ZMQError as error:
            self._context.destroy()
            port = place.meeting.store.rpartition(":")[2]
            raise RankError(f"the store of the group cannot listen on port {port}: {error.strerror}.") from error
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.is_set():
            if self._socket.poll(_ATTENTION):
                self._socket.send(self._answer(self._socket.recv()))

    def _answer(self, message: bytes) -> bytes:
        try:
            return _encode(self.shelf.answer(_decode_request(message)))
        except (msgspec.MsgspecError, ValueError):
            return _encode(None)

    def close(self) -> None:
        """Once it returns, nobody listens there any more."""
        self._closing.set()
        self._thread.join()
        self._context.destroy()


class GroupStore(Store):
    """Every rank's side. Torch calls the methods, by these names, and from threads of its own."""

    def __init__(self, place: Place, shelf: Shelf | None) -> None:
        """`shelf`: of the first rank, which has it; None: it is at the other end of a connection."""
        super().__init__()
        self._shelf = shelf
        self._lock = threading.Lock()
        if shelf is None:
            self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            place.meeting.connect(self._socket, place.meeting.store)

    def settle(self) -> None:
        """All have joined: what is left from now on nobody else sees."""
        self._shelf = Shelf()

    def set(self, key: str, value: str | bytes) -> None:
        self._ask(Put(key, value.encode() if isinstance(value, str) else value))

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._ask(Look(key)) or b""

    def add(self, key: str, value: int) -> int:
        return int(self._ask(Add(key, value)) or 0)

    def check(self, keys: Sequence[str]) -> bool:
        return all(self._ask(Look(key)) is not None for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Raises TimeoutError."""
        end = None if timeout is None else time.monotonic() + timeout.total_seconds()
        while not self.check(keys):
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"nobody has left {', '.join(keys)}")
            time.sleep(_LOOK)

    def clone(self) -> "GroupStore":
        return self

    def _ask(self, request: Put | Add | Look) -> bytes | None:
        with self._lock:
            if self._shelf is None:
                self._socket.send(_encode(request))
            while self._shelf is None:
                if self._socket.poll(_ATTENTION):
                    return _decode_answer(self._socket.recv())
        return self._shelf.answer(request)


@contextmanager
def store_of(place: Place) -> Iterator[Store]:
    """For as long as ranks join. What it yields must live for longer: torch goes on calling it."""
    address = place.meeting.store
    if address.startswith("file://"):
        yield FileStore(address.removeprefix("file://"), place.size)
        return
    server = StoreServer(place) if place.rank == 0 else None
    store = GroupStore(place, None if server is None else server.shelf)
    try:
        yield store
    finally:
        store.settle()
        if server is not None:
            server.close()
