"""Whatever becomes of a request's sends, over whichever connections: how often it is sent, and to whom."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headwater.backoff import Backoff
from headwater.http.connection import ClientConnection
from headwater.http.request import Request
from headwater.openai.errors import APIError
from headwater_router.dispatch.call import Call
from headwater_router.gateway.forward import Forwarder
from headwater_router.gateway.head import RequestHead
from headwater_router.outcome import Outcome
from headwater_router.sends import Sends
from headwater_router.upstream.connection import Connection
from tests.router.dispatching import Dispatching
from tests.router.upstream import OK
from tests.router.wires import Wire, Wires

OURS = b"POST /ours HTTP/1.1\r\n\r\n"
BUSY = b"HTTP/1.1 429 X\r\nretry-after: 9\r\ncontent-length: 2\r\n\r\n{}"
ANSWERS = {status: b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status for status in (400, 401, 404, 500, 503)} | {
    200: b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n%b" % (len(OK), OK),
    429: BUSY,
}
GARBAGE = b"\0\xff\r\n\r\n"
LOSSES = ["reset", "end", "later", "within the head", "before the body"]
MOST = 3
"""Attempts."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater_router.dispatch.dispatcher._BACKOFF", Backoff(0.0, 0.0))


class Client:
    """That gets the answer."""

    left = False
    answer_began = False

    def begin(self, status: int, headers: object) -> None:
        self.answer_began = True

    def write(self, piece: bytes) -> bool:
        return True

    def relay(self, piece: bytes) -> None: ...

    def answer(self, status: int, headers: object, body: bytes) -> None:
        self.answer_began = True

    def end(self, piece: bytes = b"") -> None: ...


class Anything:
    """A head and a request that ask for nothing in particular."""

    id = b"1"
    usage_is_ours = False
    translation = None

    def of(self, *_: object) -> tuple[bytes, bytes]:
        return OURS, b""

    def forget_body(self) -> None: ...

    def drop_body(self) -> None: ...


@dataclass(slots=True, eq=False)
class Engines(Wires):
    """Those of a dispatcher, each an address, behind the forwarder that the gateway has."""

    refusing: set[str] = field(default_factory=set)
    host_of: dict[Wire, str] = field(default_factory=dict)
    seen: dict[Wire, int] = field(default_factory=dict)
    fake: Dispatching = field(default_factory=lambda: Dispatching(4, max_attempts=MOST))
    forwarder: Forwarder = field(init=False)

    def __post_init__(self) -> None:
        Wires.__post_init__(self)
        self.fake.dispatcher._clock = time.monotonic
        self.forwarder = Forwarder(
            self.fake.dispatcher, self.fake.metrics, self.descriptors, connect_timeout=5.0,
            stall_timeout=10.0, keep_alive_comments=0.0, expose_endpoint=False,
        )  # fmt: skip

    async def _connect(self, protocol: Callable[[], Connection], *where: Any, **how: Any) -> tuple[Wire, Connection]:
        if where[0] in self.refusing:
            raise ConnectionRefusedError(111, "Connection refused")
        wire, connection = await Wires._connect(self, protocol, *where, **how)
        self.host_of[wire] = where[0]
        return wire, connection

    def written_to(self) -> list[Wire]:
        """Since the last time."""
        wires = [wire for wire in self.all if len(wire.written) > self.seen.get(wire, 0)]
        self.seen |= {wire: len(wire.written) for wire in wires}
        return wires

    def keep(self, host: str, count: int) -> None:
        """So many connections to it that were used, and are kept."""
        [endpoint] = [each for each in self.fake.endpoints if each.host == host]
        self.pool = self.forwarder.pool(endpoint)
        asked = [self.ask() for _ in range(count)]
        for wire in self.written_to():
            self.do(wire.send, ANSWERS[200])
        for each in asked:
            self.do(each.result().release)

    def forward(self, call: Call, happens: Callable[[Wire], None]) -> None:
        """One request from its begin to its end. `happens`: at its engine, each time that it is sent."""
        client, anything = cast("ClientConnection", Client()), Anything()

        async def answered() -> None:
            request, head = cast("Request", anything), cast("RequestHead", anything)
            with contextlib.suppress(APIError):
                await self.forwarder.forward(request, client, call, head)

        task = self.start(answered())
        while not task.done():
            [wire] = self.written_to()
            assert wire.written[-1] == OURS
            happens(wire)
        task.result()

    def close(self) -> None:
        self.do(self.forwarder.close)
        assert self.fake.dispatcher.budget.retries == self.forwarder.open_requests == 0
        assert not any(endpoint.in_flight for endpoint in self.fake.endpoints)
        assert not any(wire.open for wire in self.all)
        self.loop.close()


def act(engines: Engines, wire: Wire, what: str | int) -> None:
    match what:
        case int():
            engines.do(wire.send, ANSWERS[what])
        case "garbage":
            engines.do(wire.send, GARBAGE)
        case "reset" | "end":
            engines.do(getattr(wire, what))
        case "later":
            engines.pass_time(2.0)
            engines.do(wire.reset)
        case "within the head":
            engines.do(wire.send, ANSWERS[200][:10])
            engines.do(wire.reset)
        case "before the body":
            engines.do(wire.send, ANSWERS[200].removesuffix(OK))
            engines.do(wire.reset)


@given(
    kept=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    refusing=st.sets(st.integers(0, 3), max_size=3),
    script=st.lists(st.sampled_from([*LOSSES, *LOSSES, "garbage", *ANSWERS]), min_size=12, max_size=12),
)
@example(kept=[0, 1, 0, 0], refusing={0, 2}, script=["reset"] * 12)
@settings(max_examples=300, deadline=None)
def test_a_request_is_sent_once_more_after_a_loss_and_within_its_attempts(
    kept: list[int], refusing: set[int], script: list[str | int]
) -> None:
    engines = Engines()
    try:
        for number, count in enumerate(kept):
            engines.keep(f"10.0.0.{number}", count)
        engines.refusing = {f"10.0.0.{number}" for number in refusing}
        call = engines.fake.call()
        sent: list[tuple[str, bool, str | int]] = []
        """To whom, whether over a kept connection, and what came of it."""

        def happens(wire: Wire) -> None:
            what = script[len(sent)]
            sent.append((engines.host_of[wire], len(wire.written) > 1, what))
            act(engines, wire, what)

        engines.forward(call, happens)
        lost = [number for number, (_, _, what) in enumerate(sent) if what in LOSSES]
        assert not lost or len(sent) <= lost[0] + 2, "one more after a loss, and no third"
        assert len(sent) <= MOST + 1
        stale = [kept and what in ("reset", "end") for _, kept, what in sent]
        assert sum(each.outcome is not Outcome.STALE for each in call.stays) <= MOST
        assert sum(each.outcome is Outcome.STALE for each in call.stays) == any(stale)
        repeated = [
            number for number, (host, _, _) in enumerate(sent) if host in {each for each, _, _ in sent[:number]}
        ]
        assert all(stale[number - 1] for number in repeated), "to one engine twice only where it may have been closed"
        assert not repeated or len({each.endpoint.host for each in call.stays}) == 4, "and there is no other"
        assert not any(kept for number in lost for _, kept, _ in sent[number + 1 :])
        assert (call.sends.made, len(call.sends.losses)) == (len(sent), len(lost))
        if any(stale) and stale.index(True) == len(sent) - 1:
            assert engines.refusing, "there was somebody to send it to once more"
    finally:
        engines.close()


@pytest.mark.parametrize("policy", ["round_robin", "prefix"])
@pytest.mark.parametrize("how", ["reset", "end"])
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_a_kept_connection_that_was_closed_meanwhile_is_nobodys_fault(
    policy: str, how: str, most: int, count: int
) -> None:
    engines = Engines(fake=Dispatching(count, policy, max_attempts=most))
    first, last = engines.fake.endpoints[0], engines.fake.endpoints[-1]
    for _ in range(20):
        for endpoint in engines.fake.endpoints:
            engines.keep(endpoint.host, 1)
        call = engines.fake.call(b"often asked")
        script: list[str | int] = [how, 200]
        engines.forward(call, lambda wire, script=script: act(engines, wire, script.pop(0)))  # type: ignore[misc]
        assert not script
        assert [each.outcome for each in call.stays] == [Outcome.STALE, Outcome.ANSWERED]
        assert len({each.endpoint for each in call.stays}) == count, "another one, if there is one"
    assert first.breaker.error_share(0.0) == last.breaker.error_share(0.0) == 0.0
    assert not engines.fake.dispatcher.failures
    assert not engines.fake.dispatcher._poison
    engines.close()


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_request_that_kills_is_sent_twice_and_then_no_more(kept: int) -> None:
    engines = Engines()
    sent: Counter[str] = Counter()
    for _ in range(3):
        for number in range(4):
            engines.keep(f"10.0.0.{number}", kept)

        def dies(wire: Wire) -> None:
            sent[engines.host_of[wire]] += 1
            engines.do(wire.reset)

        call = engines.fake.call(b"kills")
        try:
            engines.fake.dispatcher.check(call.path, call.body, engines.fake.now)
        except APIError:
            continue
        engines.forward(call, dies)
    assert [*sent.values()] == [1, 1], "two engines, and no third"
    engines.close()


def test_one_that_resets_everything_costs_no_client_its_answer_whatever_connections_there_are() -> None:
    engines = Engines()
    ill = "10.0.0.1"
    for number in range(20):
        for endpoint in engines.fake.endpoints:
            engines.keep(endpoint.host, 0 if number % 2 and endpoint.host == ill else 2)
        call = engines.fake.call(b"%d" % number)
        engines.forward(call, lambda wire: act(engines, wire, "reset" if engines.host_of[wire] == ill else 200))
        assert call.stays[-1].outcome is Outcome.ANSWERED
    engines.close()


def test_failures_that_are_tried_again_count_in_the_budget_until_the_retry_ends() -> None:
    engines = Engines()
    retries: list[int] = []

    def fails(wire: Wire) -> None:
        retries.append(engines.fake.dispatcher.budget.retries)
        act(engines, wire, 500)

    engines.forward(engines.fake.call(), fails)
    assert retries == [0, 1]
    engines.close()


@given(st.lists(st.sampled_from(["sent", "lost"])))
def test_the_count_of_sends_and_losses(events: list[str]) -> None:
    sends = Sends()
    happened: list[str] = []
    for event in events:
        if event == "lost" and (not happened or happened[-1] == "lost"):
            continue
        happened.append(event)
        getattr(sends, event)()
    assert sends.made == happened.count("sent")
    assert len(sends.losses) == happened.count("lost")
    assert sends.broke_off == (happened[-1:] == ["lost"])
    after = happened[happened.index("lost") :] if "lost" in happened else []
    assert sends.had_one_more == ("sent" in after)
