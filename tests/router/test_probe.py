"""What takes an endpoint out, and what does not; and what it is told people then. Answers are scripted, not timed."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater.backends.metrics import Adapters
from headwater.http.descriptors import Descriptors
from headwater_router.endpoints import probe
from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.endpoint import Endpoint, EndpointSpec
from headwater_router.endpoints.fleet import Fleet
from headwater_router.endpoints.probe import Prober
from headwater_router.endpoints.readiness import Readiness
from headwater_router.upstream.errors import (
    AnswerTimeoutError,
    ConnectionLostError,
    ConnectRefusedError,
    ConnectTimeoutError,
    InsecureError,
    MalformedAnswerError,
    OwnLimitError,
    UnreachableError,
    UpstreamError,
)
from headwater_router.upstream.pool import Pool
from tests.router.gateway import until

Answer = tuple[int, bytes | Iterator[bytes]] | UpstreamError
"""Status and body, or its pieces."""
MODELS = (200, b'{"data":[{"id":"m"}]}')
FAILURES = 3
LATE = AnswerTimeoutError("no answer")


@dataclass(slots=True)
class Answered:
    status: int
    pieces: Iterator[bytes]
    read_bytes: int = 0
    released: bool = False

    exhausted: bool = False

    async def read(self) -> bytes:
        piece = next(self.pieces, b"")
        self.read_bytes += len(piece)
        self.exhausted = not piece
        return piece

    def release(self) -> None:
        self.released = True


@dataclass(slots=True)
class Engine:
    """In place of a pool: what it answers on each path."""

    ready: Answer = (200, b"{}")
    alive: Answer = (404, b"")
    models: Answer = MODELS
    metrics: Answer = (404, b"")
    requests: list[bytes] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)

    async def ask(self, request: bytes, *_: Any) -> Answered:
        self.requests.append(request)
        path = request.split(b" ")[1]
        answer = self.models if path.endswith(b"/v1/models") else self.ready
        if path.endswith(b"metrics"):
            answer = self.metrics
        if path in (b"/info", b"/model_info"):
            answer = self.alive
        if isinstance(answer, UpstreamError):
            raise answer
        status, body = answer
        given = Answered(status, iter([body]) if isinstance(body, bytes) else body)
        self.answered.append(given)
        return given

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Clock:
    now: float = 1000.0


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The loop's time."""
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock.now)
    return clock


@dataclass(slots=True)
class Probing:
    engine: Engine
    fleet: Fleet
    endpoint: Endpoint
    prober: Prober
    forgotten: list[str]
    unreachable: list[Endpoint]

    async def look(self, answer: Answer | None = None, *, models_too: bool = False) -> Endpoint:
        if answer is not None:
            self.engine.ready = answer
        await self.prober.look(self.endpoint, cast("Pool", self.engine), models_too=models_too)
        return self.endpoint


def probing(flag: str = "http://h:1,name=a,backend=vllm") -> Probing:
    forgotten: list[str] = []
    fleet = Fleet(lambda: Breaker(failures=1, window=1, open_for=1), forgotten.append)
    fleet.replace([EndpointSpec.parse(flag)])
    [endpoint] = fleet
    unreachable: list[Endpoint] = []
    fleet.on_unreachable = unreachable.append
    prober = Prober(fleet, Descriptors(1000), 0, 2, FAILURES)
    return Probing(Engine(), fleet, endpoint, prober, forgotten, unreachable)


async def test_one_late_probe_takes_nothing_and_three_in_a_row_do() -> None:
    it = probing()
    assert (await it.look()).readiness is Readiness.READY
    for _ in range(5):
        for _ in range(FAILURES - 1):
            endpoint = await it.look(LATE)
            assert (endpoint.readiness, endpoint.takes_requests) == (Readiness.LATE, True)
        assert (await it.look((200, b""))).readiness is Readiness.READY
    for _ in range(FAILURES):
        await it.look(LATE)
    assert (it.endpoint.readiness, it.endpoint.takes_requests) == (Readiness.UNREADY, False)
    assert it.unreachable == [it.endpoint], "its answers will never end"
    assert not it.forgotten, "it may live"


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_its_own_word_counts_at_once(status: int) -> None:
    it = probing()
    await it.look()
    assert not (await it.look((status, b""))).takes_requests
    assert (await it.look((200, b""))).takes_requests
    assert not it.forgotten
    assert not it.unreachable


async def test_a_refused_connection_counts_at_once_and_is_one_new_life() -> None:
    it = probing()
    before = (await it.look()).targets[0]
    for _ in range(4):
        assert not (await it.look(ConnectRefusedError("x"))).takes_requests
    assert it.forgotten == [before.id]
    assert it.endpoint.targets[0].id != before.id
    assert not it.unreachable, "the sockets of a process that is gone are closed"


async def test_who_said_no_before_it_died_begins_a_new_life_too() -> None:
    it = probing()
    before = (await it.look()).targets[0]
    await it.look((503, b""))
    await it.look(ConnectRefusedError("x"))
    assert (await it.look((200, b""))).targets[0] is not before


@pytest.mark.parametrize(
    "error", [UnreachableError("its name was not found"), ConnectTimeoutError("x"), LATE], ids=lambda error: repr(error)
)
async def test_who_cannot_be_reached_begins_no_new_life(error: UpstreamError) -> None:
    it = probing()
    before = (await it.look()).targets[0]
    for _ in range(3 * FAILURES):
        await it.look(error)
    assert it.unreachable == [it.endpoint] * 3, "again, for what was sent there in need"
    await it.look((200, b""))
    assert it.endpoint.targets[0] is before
    assert not it.forgotten


@pytest.mark.parametrize("error", [ConnectionLostError("x"), MalformedAnswerError("x"), InsecureError("x")])
async def test_answers_of_who_is_there_are_not_ended(error: UpstreamError) -> None:
    it = probing()
    await it.look()
    for _ in range(FAILURES):
        await it.look(error)
    assert not it.endpoint.takes_requests
    assert not it.unreachable


async def test_bytes_that_flow_prove_life() -> None:
    it = probing()
    await it.look()
    it.endpoint.last_heard = asyncio.get_running_loop().time
    for _ in range(10):
        assert (await it.look(LATE)).takes_requests
    long_ago = asyncio.get_running_loop().time() - 10
    it.endpoint.last_heard = lambda: long_ago
    for _ in range(FAILURES):
        await it.look(LATE)
    assert not it.endpoint.takes_requests


async def test_who_says_beside_a_late_probe_that_it_lives_is_busy(clock: Clock) -> None:
    it = probing("http://h:1,name=a,backend=tgi")
    it.engine.alive = 200, b"{}"
    await it.look()
    for _ in range(59):
        clock.now += 10
        assert (await it.look(LATE)).readiness is Readiness.LATE, "it waits behind a long prompt"
    assert (await it.look((200, b""))).readiness is Readiness.READY
    clock.now += 601
    assert not (await it.look(LATE)).takes_requests, "it hangs"
    assert not it.unreachable, "what it has begun may still come"


@pytest.mark.parametrize("alive", [(503, b""), (404, b""), LATE, ConnectionLostError("x")], ids=repr)
async def test_who_does_not_say_so_is_late(alive: Answer) -> None:
    it = probing("http://h:1,name=a,backend=tgi")
    it.engine.alive = alive
    await it.look()
    for _ in range(FAILURES):
        await it.look(LATE)
    assert not it.endpoint.takes_requests


async def test_who_was_never_ready_is_not_ready_for_being_alive() -> None:
    it = probing("http://h:1,name=a,backend=sglang")
    it.engine.alive = 200, b"{}"
    for _ in range(3):
        await it.look(LATE)
    assert it.endpoint.readiness is Readiness.NEW
    await it.look((503, b""))
    assert it.endpoint.readiness is Readiness.NEW


async def test_where_readiness_costs_a_token_it_is_asked_for_now_and_then(clock: Clock) -> None:
    it = probing("http://h:1,name=a,backend=sglang")
    it.engine.alive = 200, b"{}"
    for turn in range(20):
        clock.now += 1
        await it.look(models_too=turn % 5 == 0)
    assert sum(b" /health " in request for request in it.engine.requests) == 4
    assert not (await it.look((503, b""), models_too=True)).takes_requests, "it drains"
    assert (await it.look((200, b""))).takes_requests


async def test_a_version_without_that_path_is_asked_for_readiness_each_time() -> None:
    it = probing("http://h:1,name=a,backend=sglang")
    for _ in range(4):
        assert (await it.look()).readiness is Readiness.READY
    assert not (await it.look((503, b""))).takes_requests


async def test_a_scheduler_that_hangs_behind_a_front_that_lives_is_noticed(clock: Clock) -> None:
    it = probing("http://h:1,name=a,backend=sglang")
    it.engine.alive = 200, b"{}"
    await it.look()
    for turn in range(62):
        clock.now += 10
        await it.look(LATE, models_too=turn % 5 == 0)
    assert not it.endpoint.takes_requests


async def test_what_lies_with_the_router_says_nothing_of_the_endpoint() -> None:
    it = probing()
    await it.look()
    for _ in range(2 * FAILURES):
        assert (await it.look(OwnLimitError("no descriptors"))).readiness is Readiness.READY


async def test_who_has_said_what_it_serves_need_not_say_so_again() -> None:
    it = probing()
    await it.look()
    for models in ((500, b""), (200, b"{"), (401, b""), LATE, MalformedAnswerError("x")):
        it.engine.models = models
        await it.look(models_too=True)
        assert it.endpoint.takes_requests
        assert [model.name for model in it.endpoint.models] == ["m"]


ANSWERS = st.sampled_from(
    [(200, b""), (503, b""), LATE, UnreachableError("x"), ConnectRefusedError("x"), OwnLimitError("x"),
     MalformedAnswerError("x")]
)  # fmt: skip


@given(st.lists(st.tuples(ANSWERS, st.booleans()), max_size=30))
async def test_readiness_follows_from_the_last_answers_alone(steps: list[tuple[Answer, bool]]) -> None:
    it = probing()
    expected, missed = False, 0
    for answer, flowing in steps:
        now = asyncio.get_running_loop().time
        it.endpoint.last_heard = now if flowing else lambda: float("-inf")
        await it.look(answer)
        match answer:
            case (200, _):
                expected, missed = True, 0
            case (_, _) | ConnectRefusedError():
                expected, missed = False, 0
            case OwnLimitError():
                pass
            case _:
                missed = 0 if flowing else missed + 1
                expected = expected and missed < FAILURES
        assert it.endpoint.takes_requests == expected
        assert it.endpoint.ready == it.endpoint.readiness.takes_requests
        assert bool(it.endpoint.reason) == (it.endpoint.readiness is not Readiness.READY)


# Load


@pytest.fixture
def in_place_of_pools(monkeypatch: pytest.MonkeyPatch) -> Probing:
    it = probing()
    monkeypatch.setattr(probe, "Pool", lambda *_: it.engine)
    return it


def never_ending(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


@pytest.mark.parametrize(
    "metrics",
    [(500, b""), (200, b"\xff\x00"), (200, b"vllm:num_requests_running{ 3"), (200, b"vllm:num_requests_running x"),
     (200, b"process_start_time_seconds nan"), (200, b"process_start_time_seconds 1e999"),
     (200, b"vllm:num_requests_running 1e308\n" * 3), LATE, ConnectionLostError("x"), ConnectRefusedError("x")],
    ids=repr,
)  # fmt: skip
async def test_an_odd_metrics_page_says_nothing_of_readiness(in_place_of_pools: Probing, metrics: Answer) -> None:
    it = in_place_of_pools
    it.engine.metrics = metrics
    task = asyncio.create_task(it.prober.run(it.endpoint))
    await until(lambda: sum(b" /metrics " in request for request in it.engine.requests) > 5)
    task.cancel()
    await asyncio.wait([task])
    assert it.endpoint.readiness is Readiness.READY
    assert not it.forgotten
    assert it.endpoint.targets[0].load.reported_running is None


async def test_which_adapters_an_engine_has_in_use_is_told_to_the_policy(in_place_of_pools: Probing) -> None:
    it = in_place_of_pools
    labels = b'max_lora="4",running_lora_adapters="sql",waiting_lora_adapters=""'
    it.engine.metrics = 200, b"vllm:lora_requests_info{%b} 1.7e+09\n" % labels
    task = asyncio.create_task(it.prober.run(it.endpoint))
    await until(lambda: it.endpoint.targets[0].load.reported.adapters == Adapters(4, ("sql",)))
    task.cancel()
    await asyncio.wait([task])


async def test_no_more_of_an_answer_is_read_than_one_can_have(in_place_of_pools: Probing) -> None:
    it = in_place_of_pools
    piece = b"vllm:num_requests_running 3\n" + b"# " + b"x" * 65536 + b"\n"
    it.engine.ready = 200, never_ending(piece)
    it.engine.metrics = 200, never_ending(piece)
    task = asyncio.create_task(it.prober.run(it.endpoint))
    await until(lambda: it.endpoint.targets[0].load.reported_running is not None)
    task.cancel()
    await asyncio.wait([task])
    assert max(each.read_bytes for each in it.engine.answered) < 5 * 2**20
    assert all(each.released for each in it.engine.answered)


# What people are told


@pytest.mark.parametrize(
    ("flag", "ready", "models", "reason"),
    [
        ("http://h:1", (404, b""), MODELS, "404 on /ready: is it backend=vllm? These have another path: sglang, "),
        ("http://h:1,backend=vllm", (404, b""), MODELS, "404 on /health: is it backend=headwater?"),
        ("http://h:1", (503, b'{"status":"loading"}'), MODELS, "503 on /ready: loading"),
        ("http://h:1", (503, b"<html>"), MODELS, "503 on /ready"),
        ("http://h:1", (401, b""), MODELS, "401 on /ready: it needs a key: api_key_env= or api_key_file="),
        ("http://h:1", (200, b""), (401, b""), "401 on /v1/models: it needs a key: api_key_env= or api_key_file="),
        (
            "http://h:1,api_key_env=KEY",
            (403, b""),
            MODELS,
            "403 on /ready: it does not take the key of api_key_env=KEY",
        ),
        ("http://h:1", (200, b""), (200, b"{"), "its /v1/models makes no sense: it is not JSON"),
        ("http://h:1", (200, b""), (200, b"[]"), "its /v1/models makes no sense: it is no list of models"),
        ("http://h:1", (200, b""), (404, b""), "404 on /v1/models"),
        ("http://h:1", ConnectRefusedError("x"), MODELS, "nobody listens at h:1"),
        ("http://h:1", UnreachableError("the name was not found"), MODELS, "the name was not found (h)"),
        ("http://h:1", ConnectTimeoutError("x"), MODELS, "no connection to h:1 within 2 s"),
        ("https://h:1", InsecureError("there is no TLS with it: X"), MODELS, "there is no TLS with it: X"),
        ("http://h:1", MalformedAnswerError("the answer is not HTTP"), MODELS, "the answer is not HTTP"),
    ],
)
async def test_an_endpoint_that_was_never_ready_says_why_once(
    monkeypatch: pytest.MonkeyPatch, flag: str, ready: Answer, models: Answer, reason: str
) -> None:
    monkeypatch.setenv("KEY", "secret")
    structlog.reset_defaults()
    it = probing(f"{flag},name=a")
    it.engine.models = models
    with capture_logs() as logged:
        for _ in range(2 * FAILURES):
            await it.look(ready)
    assert it.endpoint.readiness is Readiness.NEW
    assert it.endpoint.reason.startswith(reason)
    assert [(each["event"], each["reason"]) for each in logged] == [("endpoint not ready", it.endpoint.reason)]
    assert it.fleet.why_not_ready("m") == f"a: {it.endpoint.reason}"
    assert "secret" not in f"{logged}"


async def test_a_probe_asks_below_the_path_and_shows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    it = probing("https://h/base/,name=a,backend=vllm,api_key_env=KEY")
    await it.look()
    assert it.engine.requests == [
        b"GET /base%b HTTP/1.1\r\nhost: h\r\nauthorization: Bearer secret\r\n\r\n" % path
        for path in (b"/health", b"/v1/models")
    ]
