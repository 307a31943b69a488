"""Whatever engines, clients and the network do: a request gets its own answer's bytes, and what is kept is clean."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headwater_router.upstream.connection import Connection
from headwater_router.upstream.errors import ConnectionLostError, UpstreamError
from headwater_router.upstream.state import IDLE
from tests.router.wires import Wire, Wires

ANOTHER = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nunwanted!"
"""An answer that nobody asked for."""
WHICH = st.integers(0, 5)
"""The oldest of those that there are, the one after, and so on, around."""


@dataclass(slots=True, eq=False)
class Asked:
    """A request, and what its owner got."""

    body: bytes
    """Of the answer."""
    answer: bytes
    task: "asyncio.Task[Connection]" = field(init=False)
    reading: "asyncio.Task[bytes] | None" = None
    received: bytearray = field(default_factory=bytearray)

    @property
    def connection(self) -> Connection:
        return self.task.result()

    def take(self, piece: bytes) -> bool:
        self.received += piece
        return True


def framed(body: bytes, framing: str, status: int, announced: int, rest: bytes) -> bytes:
    """An answer in bytes. `announced`: times by 1xx. `rest`: what comes behind it."""
    head = b"HTTP/1.1 100 Continue\r\n\r\n" * announced + b"HTTP/1.1 %d X\r\nconnection: x-own\r\nx-own: 1\r\n" % status
    match framing:
        case "length":
            return head + b"content-length: %d\r\n\r\n" % len(body) + body + rest
        case "length, last":
            head = head.replace(b"x-own\r\n", b"close\r\n", 1)
            return head + b"content-length: %d\r\n\r\n" % len(body) + body + rest
        case "chunks":
            chunks = [body[at : at + 7] for at in range(0, len(body), 7)]
            coded = b"".join(b"%x;e=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
            return head + b"transfer-encoding: chunked\r\n\r\n" + coded + b"0\r\nx-trailer: 1\r\n\r\n" + rest
        case _:
            return head + b"\r\n" + body


class Exchanges(RuleBasedStateMachine):
    """Several clients, one engine."""

    def __init__(self) -> None:
        super().__init__()
        self.wires = Wires()
        self.asked: dict[int, Asked] = {}
        """Those that are not over, by their number."""
        self.count = 0
        self.answered: dict[Wire, int] = {}
        """Requests on each wire that the engine has seen."""

    # Clients

    @rule(
        framing=st.sampled_from(["length", "chunks", "chunks", "length, last", "end of the connection"]),
        status=st.sampled_from([200, 500]),
        pieces=st.integers(0, 20),
        announced=st.integers(0, 2),
        rest=st.sampled_from([b"", b"", b"", ANOTHER, b"\r\n", b"HTTP", b"junk"]),
        sent=st.sampled_from(["nothing", "some", "all"]),
    )
    def ask(self, framing: str, status: int, pieces: int, announced: int, rest: bytes, sent: str) -> None:
        self.count += 1
        body = b"<%d>" % self.count * pieces
        asked = self.asked[self.count] = Asked(body, framed(body, framing, status, announced, rest))
        asked.task = self.wires.ask(b"POST /%d HTTP/1.1\r\n\r\n" % self.count)
        self.look()
        if sent != "nothing" and self.talking:
            self.send(-1, len(asked.answer) - len(rest) - 12 if sent == "some" else 10_000)

    @precondition(lambda self: self.asked)
    @rule(which=WHICH, relay=st.sampled_from(["takes", "takes none", "is not there"]))
    def read(self, which: int, relay: str) -> None:
        asked = self.one(which)
        if asked.task.done() and asked.reading is None:
            relays = {"takes": asked.take, "takes none": lambda _: False}
            asked.reading = self.wires.start(asked.connection.read(relays.get(relay)))
        self.look()

    @precondition(lambda self: self.asked)
    @rule(which=WHICH, really=st.sampled_from([True, False, False]))
    def leave(self, which: int, really: bool) -> None:
        asked = self.one(which)
        if not (really or asked.task.done()):
            return
        self.wires.do((asked.reading or asked.task).cancel)
        if not asked.task.cancelled():
            self.wires.do(asked.connection.release)
        self.end(asked)
        self.look()

    # The engine, and the network

    @precondition(lambda self: self.talking)
    @rule(which=WHICH, length=st.integers(1, 100))
    def send(self, which: int, length: int) -> None:
        wire = self.talking[which % len(self.talking)]
        piece, wire.outbox = wire.outbox[:length], wire.outbox[length:]
        self.wires.do(wire.send, piece)
        self.look()

    @precondition(lambda self: self.talking)
    @rule(which=WHICH)
    def send_all(self, which: int) -> None:
        self.send(which, 10_000)

    @precondition(lambda self: self.open)
    @rule(which=WHICH, how=st.sampled_from(["reset", "end", "unasked"]))
    def break_connection(self, which: int, how: str) -> None:
        wire = self.open[which % len(self.open)]
        if how == "reset":
            self.wires.do(wire.reset)
        elif how == "end":
            self.wires.do(wire.end)
        elif wire.protocol in self.wires.pool._idle:
            self.wires.do(wire.send, ANOTHER)
            assert not wire.open
        self.look()

    # The router

    @rule(happening=st.sampled_from([0.5, 0.5, 3.0, 12.0, 40.0, "all fail", "unused are closed"]))
    def wait(self, happening: float | str) -> None:
        if happening == "all fail":
            self.wires.do(self.wires.pool.fail_all, ConnectionLostError("it is gone"))
            assert not self.open
        elif happening == "unused are closed":
            self.wires.do(self.wires.descriptors.close_unused, self.wires.now + 1000)
            assert not self.wires.kept
        else:
            self.wires.pass_time(float(happening))
        self.look()

    # What follows from these

    @property
    def open(self) -> list[Wire]:
        return [wire for wire in self.wires.all if wire.open]

    @property
    def talking(self) -> list[Wire]:
        return [wire for wire in self.open if wire.outbox]

    def one(self, which: int) -> Asked:
        return list(self.asked.values())[which % len(self.asked)]

    def look(self) -> None:
        """See what is done, on both sides."""
        for wire in self.open:
            if len(wire.written) > self.answered.get(wire, 0):
                self.answered[wire] = len(wire.written)
                number = int(wire.written[-1].split(b" ")[1][1:])
                wire.outbox = self.asked[number].answer
        for asked in list(self.asked.values()):
            if asked.task.done() and asked.task.exception() is not None:
                assert isinstance(asked.task.exception(), UpstreamError)
                self.end(asked)
            elif asked.reading is not None and asked.reading.done():
                self.take(asked, asked.reading)

    def take(self, asked: Asked, reading: "asyncio.Task[bytes]") -> None:
        asked.reading = None
        if (error := reading.exception()) is not None:
            assert isinstance(error, UpstreamError)
        elif piece := reading.result():
            asked.take(piece)
            return
        elif asked.connection.ended_by_close:
            assert not any(wire.was_reset for wire in self.wires.all if wire.protocol is asked.connection)
        else:
            assert asked.received == asked.body
        self.wires.do(asked.connection.release)
        self.end(asked)

    def end(self, asked: Asked) -> None:
        assert asked.body.startswith(asked.received)
        self.asked = {number: each for number, each in self.asked.items() if each is not asked}

    # What holds at any time

    @invariant()
    def bytes_are_those_of_the_own_answer(self) -> None:
        for asked in self.asked.values():
            assert asked.body.startswith(asked.received)

    @invariant()
    def kept_ones_are_clean(self) -> None:
        pool = self.wires.pool
        assert pool._idle.keys() == self.wires.descriptors._kept.keys()
        for wire in self.wires.all:
            if wire.protocol in pool._idle:
                assert wire.open and wire.reading
                assert wire.protocol.state is IDLE and not wire.protocol._chunks

    @invariant()
    def the_pool_knows_what_is_open(self) -> None:
        assert {wire.protocol for wire in self.open} == self.wires.pool._open

    def teardown(self) -> None:
        while self.asked:
            self.leave(0, True)
        self.wires.close()


Exchanges.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestExchanges = Exchanges.TestCase
