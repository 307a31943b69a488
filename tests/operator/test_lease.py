"""Never two holders at one time, whatever the network does; and never none for longer than it must be."""

import asyncio
import contextlib
import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.virtual_clock import run
from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import Kind, Object
from headwater_operator.cluster.lease import LeaseHolder, LeaseLostError

SECONDS = 12.0


@dataclass
class Server:
    """The API server, for a single object."""

    lease: Object | None = None
    version: int = 0

    def get(self, manifest: Object | None) -> Object | None:
        return copy.deepcopy(self.lease)

    def create(self, manifest: Object | None) -> Object:
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "it is there already")
        return self._write(manifest)

    def replace(self, manifest: Object | None) -> Object:
        assert manifest is not None
        if self.lease is None:
            raise ApiError(404, "NotFound", "it is not there")
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "somebody else has written")
        return self._write(manifest)

    def _write(self, manifest: Object | None) -> Object:
        assert manifest is not None
        self.version += 1
        self.lease = copy.deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)

    @property
    def holder(self) -> str:
        return str(self.lease["spec"]["holderIdentity"]) if self.lease else ""


@dataclass
class Wire:
    """One operator's way to the server."""

    server: Server
    delay: Callable[[], float] = lambda: 0.01
    """Seconds one way."""
    fails: Callable[[], bool] = lambda: False
    cut: bool = False
    """Nothing gets through, and nobody says so."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return await self._call(self.server.get)

    async def create(self, manifest: Object) -> Object:
        return cast("Object", await self._call(self.server.create, manifest))

    async def replace(self, manifest: Object) -> Object:
        return cast("Object", await self._call(self.server.replace, manifest))

    async def _call(
        self, call: Callable[[Object | None], Object | None], manifest: Object | None = None
    ) -> Object | None:
        manifest = copy.deepcopy(manifest)
        await self._travel()
        answer = call(manifest)
        await self._travel()
        return answer

    async def _travel(self) -> None:
        await asyncio.sleep(self.delay())
        if self.cut:
            await asyncio.sleep(20)
            raise ApiError(0, "Unreachable", "no answer")
        if self.fails():
            raise ApiError(500, "InternalError", "etcd has its moments")


@dataclass
class Record:
    """Who acted, from when to when."""

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def check(self) -> None:
        by_start = sorted(self.spans, key=lambda span: span[1])
        for (one, _, end), (other, start, _) in itertools.pairwise(by_start):
            assert end <= start, f"{one} acted until {end}, {other} from {start}"


def candidate(wire: Wire, name: str, seconds: float = SECONDS) -> LeaseHolder:
    return LeaseHolder(cast("Cluster", wire), "default", "operator", name, seconds)


async def act(wire: Wire, name: str, record: Record, until: Callable[[], float | None] = lambda: None) -> None:
    """A life of an operator: wait, act, and end when the Lease is lost, or by itself after so many seconds."""
    loop = asyncio.get_running_loop()
    lease = candidate(wire, name)
    await lease.acquire()
    begin = loop.time()
    stopped = False
    try:
        async with asyncio.timeout(until()):
            await lease.keep()
    except LeaseLostError:
        pass
    except TimeoutError:
        stopped = True
    finally:
        record.spans.append((name, begin, loop.time()))
    if stopped:
        await lease.release()


@settings(max_examples=20)
@given(st.integers(0, 1 << 32))
def test_never_two_holders_under_delays_failures_and_partitions(seed: int) -> None:
    rng = random.Random(seed)
    record, server = Record(), Server()

    async def lives(number: int) -> None:
        slow = rng.choice([0.01, SECONDS / 30])
        wire = Wire(server, lambda: rng.uniform(0, slow), lambda: rng.random() < 0.05)

        async def partitions() -> None:
            while True:
                await asyncio.sleep(rng.expovariate(1 / 60))
                wire.cut = True
                await asyncio.sleep(rng.uniform(0, 3 * SECONDS))
                wire.cut = False

        cutting = asyncio.create_task(partitions())
        try:
            for life in range(1000):
                stop = rng.choice([None, rng.expovariate(1 / 60)])
                await act(wire, f"{number}.{life}", record, lambda stop=stop: stop)  # type: ignore[misc]
                await asyncio.sleep(rng.uniform(0, 5))
        finally:
            cutting.cancel()

    async def work() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1500):
                await asyncio.gather(*(lives(number) for number in range(3)))

    run(work())
    record.check()
    assert len(record.spans) > 10
    assert sum(end - begin for _, begin, end in record.spans) > 500, "most of the time somebody acts"


@pytest.mark.parametrize("after", [n / 4 for n in range(4, 20)])
def test_a_holder_whose_calls_hang_ends_before_another_may_begin(after: float) -> None:
    record, server = Record(), Server()

    async def work() -> float:
        first, second = Wire(server), Wire(server)
        holding = asyncio.create_task(act(first, "first", record))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(candidate(second, "second").acquire())
        await asyncio.sleep(after)
        first.cut = True
        await waiting
        assert holding.done(), "the first still acts"
        waiting.result()
        return asyncio.get_running_loop().time()

    begin = run(work())
    assert record.spans[0][2] <= begin - SECONDS / 12
    assert begin <= after + 0.1 + SECONDS * 1.5, "nobody acts for longer than it must be"


def test_a_renewal_counts_from_when_it_was_sent_not_from_when_it_was_answered() -> None:
    server = Server()
    # get and create to take it, get and replace to renew it, each there and back; the last answer is a slow one.
    delays = iter([0.01] * 7 + [5.0])

    async def work() -> None:
        first = Wire(server, delay=lambda: next(delays, 0.01))
        holding = asyncio.create_task(act(first, "first", Record()))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(candidate(Wire(server), "second").acquire())
        await asyncio.sleep(SECONDS * 2 / 3)
        assert server.version == 2 and next(delays, None) is None
        first.cut = True
        await waiting
        assert holding.done(), "the first still acts"

    run(work())


@pytest.mark.parametrize(("late", "cut"), [(3.0, 3.5), (5.0, 20.0), (10.0, 20.0), (19.0, 20.0)])
def test_taking_it_counts_from_when_it_was_asked_for_not_from_when_that_was_answered(late: float, cut: float) -> None:
    server, record = Server(), Record()
    delays = iter([0.0, 0.0, 0.0, late])  # get: there, back; create: there, and back at last

    async def work() -> None:
        first = Wire(server, delay=lambda: next(delays, 0.01))
        one = asyncio.create_task(act(first, "first", record))
        await asyncio.sleep(0.5)
        two = asyncio.create_task(act(Wire(server), "second", record))
        await asyncio.sleep(cut)
        first.cut = True
        await asyncio.sleep(30)
        two.cancel()
        await asyncio.wait([one, two])

    run(work())
    record.check()
    assert [who for who, *_ in record.spans] == ["first", "second"]


def test_a_few_failed_renewals_do_not_end_the_holder() -> None:
    server = Server()
    failing = False
    wire = Wire(server, fails=lambda: failing)

    async def work() -> None:
        nonlocal failing
        lease = candidate(wire, "first")
        await lease.acquire()
        keeping = asyncio.create_task(lease.keep())
        for _ in range(20):
            await asyncio.sleep(SECONDS / 3)
            failing = not failing
            assert not keeping.done()
        failing = True
        await asyncio.sleep(SECONDS)
        with pytest.raises(LeaseLostError, match="in time"):
            keeping.result()

    run(work())


def test_a_holder_that_finds_another_ones_name_ends() -> None:
    server = Server()

    async def work() -> None:
        lease = candidate(Wire(server), "first")
        await lease.acquire()
        keeping = asyncio.create_task(lease.keep())
        await asyncio.sleep(SECONDS)
        taken = cast("Object", server.get(None))
        taken["spec"]["holderIdentity"] = "second"
        server.replace(taken)
        await asyncio.sleep(SECONDS / 6 + 0.1)
        with pytest.raises(LeaseLostError, match="somebody else"):
            keeping.result()
        await lease.release()

    run(work())
    assert server.holder == "second"


def test_a_release_lets_the_next_begin_at_its_next_look() -> None:
    server = Server()

    async def work() -> float:
        first, second = candidate(Wire(server), "first"), candidate(Wire(server), "second")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(1)
        await first.release()
        released = asyncio.get_running_loop().time()
        await waiting
        return asyncio.get_running_loop().time() - released

    assert run(work()) <= SECONDS / 6 + 0.1
    assert server.holder == "second"


@pytest.mark.parametrize("after", [n / 100 for n in range(6)])
def test_a_release_works_whenever_the_last_renewal_was_cut_off(after: float) -> None:
    """Before the server wrote, on its way back, or not begun: what it says of the version is not known."""
    server = Server()

    async def work() -> None:
        first = candidate(Wire(server), "first")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        await asyncio.sleep(SECONDS / 6 + after)
        keeping.cancel()
        await asyncio.wait([keeping])
        await first.release()

    run(work())
    assert server.holder == ""


def test_a_release_works_when_a_renewal_that_was_cut_off_gets_in_between() -> None:
    server = Server()
    wire = Wire(server)

    async def work() -> None:
        first = candidate(wire, "first")
        await first.acquire()
        late = asyncio.create_task(wire.replace(cast("Object", server.get(None))))
        await asyncio.sleep(0.005)
        wire.delay = lambda: 0.003  # the look at it comes before the late one, and the write after it
        await first.release()
        await late

    run(work())
    assert server.version == 3 and server.holder == ""


def test_a_reason_is_told_once_while_it_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(Server(), delay=lambda: SECONDS)
    told: list[str] = []
    monkeypatch.setattr("headwater_operator.cluster.lease.log.warning", lambda event, reason: told.append(reason))

    async def work() -> None:
        waiting = asyncio.create_task(candidate(wire, "first").acquire())
        await asyncio.sleep(SECONDS * 5)
        wire.delay, wire.fails = lambda: 0.01, lambda: True
        await asyncio.wait([waiting], timeout=SECONDS * 5)

    run(work())
    assert told == ["the API server takes too long", "etcd has its moments"]


def test_a_release_that_fails_costs_the_next_only_the_wait() -> None:
    server = Server()
    wire = Wire(server)

    async def work() -> None:
        first = candidate(wire, "first")
        await first.acquire()
        wire.fails = lambda: True
        await first.release()

    run(work())
    assert server.holder == "first"


def of_another(renewed: str, seconds: Any) -> Server:
    spec = {"holderIdentity": "old", "leaseDurationSeconds": seconds, "renewTime": renewed, "leaseTransitions": 3}
    return Server({"metadata": {"name": "operator", "namespace": "default", "resourceVersion": "0"}, "spec": spec})


@pytest.mark.parametrize("renewed", ["1999-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000000Z"])
@pytest.mark.parametrize(("said", "wait"), [(30, 30.0), (None, SECONDS)])
def test_clocks_that_differ_do_not_matter(renewed: str, said: int | None, wait: float) -> None:
    """What counts is how long we have seen no renewal, and how long the holder said that it may take."""
    server = of_another(renewed, said)

    async def work() -> float:
        await candidate(Wire(server), "new").acquire()
        return asyncio.get_running_loop().time()

    assert wait < run(work()) <= wait + SECONDS / 6 + 0.2
    assert server.lease is not None and server.lease["spec"]["leaseTransitions"] == 4


def test_a_holder_that_renews_keeps_others_waiting_for_ever() -> None:
    server = Server()

    async def work() -> None:
        first = candidate(Wire(server), "first")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        waiting = asyncio.create_task(candidate(Wire(server), "second").acquire())
        await asyncio.sleep(SECONDS * 50)
        assert not keeping.done() and not waiting.done()
        keeping.cancel()
        waiting.cancel()

    run(work())
    assert server.lease is not None
    spec = server.lease["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"], spec["leaseDurationSeconds"]) == ("first", 0, 12)


def test_of_many_that_find_it_free_at_once_one_gets_it() -> None:
    server = Server()

    async def work() -> int:
        tasks = [asyncio.create_task(candidate(Wire(server), str(each)).acquire()) for each in range(5)]
        await asyncio.sleep(SECONDS / 2)
        return sum(task.done() for task in tasks)

    assert run(work()) == 1
