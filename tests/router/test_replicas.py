"""Routers that share a Redis send a conversation to the engine that has its beginning, whichever it comes through."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
import structlog

from headwater.http.descriptors import Descriptors
from headwater_router.app import Router, SettingsError
from headwater_router.config import RouterSettings
from headwater_router.gateway.body import read_body
from headwater_router.index import PromptBuilder
from headwater_router.replicas.message import Prefix, encode
from headwater_router.replicas.sharing import CHANNEL, Sharing
from tests.router.gateway import CHAT, RunningGateway, gateway, until
from tests.router.redis_server import RedisServer, redis_server
from tests.router.upstream import Exchange, Upstream, upstream

DOCUMENT = "The Seine is a river in the north of France. " * 200
PREDICTED = 'headwater_router_predicted_cached_tokens_total{model="m"}'
ENTRIES = 'headwater_router_index_entries{source="dispatches"}'
STARTED = "process_start_time_seconds {}\n"


async def with_usage(exchange: Exchange) -> None:
    usage = {"prompt_tokens": 2000, "prompt_tokens_details": {"cached_tokens": 1500}}
    await exchange.whole(json.dumps({"choices": [{}], "usage": usage}).encode())


def turns(conversation: int) -> tuple[bytes, bytes]:
    """Bodies of its first and its second turn."""
    messages = [{"role": "user", "content": f"{conversation}: {DOCUMENT}"}]
    first = json.dumps({"model": "m", "messages": messages}).encode()
    messages += [{"role": "assistant", "content": "I see."}, {"role": "user", "content": "Where does it end?"}]
    return first, json.dumps({"model": "m", "messages": messages}).encode()


@dataclass(slots=True, eq=False)
class Replicas:
    """Two routers before the same two engines."""

    one: RunningGateway
    other: RunningGateway
    engines: list[Upstream]

    async def until_connected(self) -> None:
        for router in (self.one, self.other):
            await until(lambda router=router: router.router.metrics.redis_connected._value.get() == 1)

    async def converse(self, conversation: int, *, told: bool = True) -> tuple[str, str]:
        """Who answers its first turn, through one router, and its second, through the other once that was `told`."""
        first, second = turns(conversation)
        answers = [await self.one.post(first)]
        if told:
            chain = PromptBuilder().build(CHAT, read_body(first), [], model="m").text_chain
            await until(lambda: self.other.router._index.match(chain, time.monotonic()).longest > 0)
        answers.append(await self.other.post(second))
        assert [answer.status_code for answer in answers] == [200, 200]
        return answers[0].headers["x-headwater-endpoint"], answers[1].headers["x-headwater-endpoint"]


def shared(router: RunningGateway, outcome: str) -> float:
    return router.router.metrics.shared_prefixes[outcome].value


@asynccontextmanager
async def replicas(redis_url: str) -> AsyncIterator[Replicas]:
    settings = {"policy": "prefix", "redis_url": redis_url}
    async with upstream() as a, upstream() as b:
        a.answer = b.answer = with_usage
        for number, engine in enumerate((a, b)):
            engine.serve_metrics(STARTED.format(1.7e9 + number))
        async with gateway(a, b, **settings) as one, gateway(a, b, **settings) as other:
            yield Replicas(one, other, [a, b])


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest.fixture
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """What is logged at the default level."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    with structlog.testing.capture_logs() as captured:
        yield captured


def losses(logs: list[structlog.typing.EventDict]) -> list[structlog.typing.EventDict]:
    return [each for each in logs if each["event"].startswith("Redis cannot be used")]


async def test_a_conversation_finds_its_prefix_through_another_router(redis: RedisServer) -> None:
    async with replicas(redis.url) as both:
        await both.until_connected()
        for conversation in range(8):
            first, second = await both.converse(conversation)
            assert first == second
        # None of its own prompts began as one before.
        assert await both.other.metric(PREDICTED) > 8 * 1500
        assert (shared(both.one, "sent"), shared(both.one, "dropped")) == (8, 0)
        # What a router was told, it does not tell again.
        await until(lambda: shared(both.other, "sent") == 8)
        # Whoever came later asked what was before, and on a busy machine may be told the first one that way, too.
        assert shared(both.other, "received") >= 8
        await until(lambda: shared(both.one, "received") >= 8)


async def test_without_redis_requests_are_answered_and_sharing_begins_when_it_comes(
    logs: list[structlog.typing.EventDict],
) -> None:
    async with redis_server() as server:
        await server.kill()
        async with replicas(server.url) as both:
            for conversation in range(3):
                await both.converse(conversation, told=False)
            assert await both.one.metric("headwater_router_redis_connected") == 0
            # Until both have tried again.
            await until(lambda: min(each.router.sharing._failures for each in (both.one, both.other)) >= 2)
            await server.start()
            await both.until_connected()
            # What was answered meanwhile was kept for this moment.
            await until(lambda: shared(both.one, "sent") == shared(both.other, "sent") == 3)
            assert len(set(await both.converse(3))) == 1
    assert len(losses(logs)) == 2, "each router says it once, however often it tries"
    assert losses(logs)[0]["redis"] == f"127.0.0.1:{server.port}"
    assert server.password not in repr(logs)


async def test_redis_may_die_and_come_back(redis: RedisServer) -> None:
    async with replicas(redis.url) as both:
        await both.until_connected()
        assert len(set(await both.converse(0))) == 1
        await redis.kill()
        await until(lambda: both.one.router.metrics.redis_connected._value.get() == 0)
        for conversation in range(1, 4):
            await both.converse(conversation, told=False)
        await redis.start()
        await both.until_connected()
        # At most the message is lost that was on its way.
        await until(lambda: shared(both.one, "sent") + shared(both.one, "dropped") == 4)
        for conversation in range(4, 8):
            assert len(set(await both.converse(conversation))) == 1


async def test_a_redis_that_hangs_holds_up_neither_requests_nor_the_end(redis: RedisServer) -> None:
    async with replicas(redis.url) as both:
        await both.until_connected()
        redis.freeze()
        for conversation in range(3):
            await both.converse(conversation, told=False)


async def test_a_wrong_password_is_said_without_the_password_and_nothing_else_happens(
    redis: RedisServer, logs: list[structlog.typing.EventDict]
) -> None:
    async with replicas(redis.url.replace(redis.password, "guessed")) as both:
        await until(lambda: len(losses(logs)) == 2)
        await both.converse(0, told=False)
    assert "guessed" not in repr(logs)


async def test_garbage_and_strangers_change_nothing(redis: RedisServer) -> None:
    async with replicas(redis.url) as both:
        await both.until_connected()
        for garbage in (b"", b"\xc1", b"hello", msgspec.msgpack.encode([1, "x", []])):
            assert await redis.publish(CHANNEL, garbage) == 2
        await redis.publish(CHANNEL, encode("x", [Prefix("http://elsewhere:8000@", [1, 2, 3])]))
        await until(lambda: shared(both.one, "unknown") == shared(both.other, "unknown") == 1)
        assert await both.one.metric("headwater_router_shared_malformed_total") == 4
        assert await both.one.metric(ENTRIES) == 0
        assert len(set(await both.converse(0))) == 1


async def test_it_ends_when_it_is_told_to_also_where_redis_is_lost_in_that_moment(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost_as_it_ends(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("lost") from None

    monkeypatch.setattr(Sharing, "_receive", lost_as_it_ends)
    async with upstream() as engine, gateway(engine) as one:
        router = one.router
        sharing = Sharing(redis.url, router.fleet, router._policies, router.metrics)
        running = asyncio.create_task(sharing.run())
        await until(lambda: router.metrics.redis_connected._value.get() == 1)
        await asyncio.sleep(0)  # so that it receives
        running.cancel()
        await asyncio.wait([running], timeout=60)
        assert running.cancelled()


async def test_it_ends_in_whatever_moment_it_is_told_to(redis: RedisServer) -> None:
    """Also where what it waited for has just come true, which hides the end of a task from `asyncio.wait_for`."""
    async with upstream() as engine, gateway(engine) as one:
        for turns in range(300):
            sharing = Sharing(redis.url, one.router.fleet, one.router._policies, one.router.metrics)
            running = asyncio.create_task(sharing.run())
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running], timeout=60)
            assert running.cancelled(), f"it goes on when it is told to end {turns} turns of the loop after it began"


async def test_a_large_message_is_taken_over_in_pieces_between_which_an_endpoint_may_go() -> None:
    settings = {"policy": "prefix", "redis_url": "redis://127.0.0.1:1"}
    async with upstream() as a, upstream() as b:
        for number, engine in enumerate((a, b)):
            engine.serve_metrics(STARTED.format(1.7e9 + number))
        async with gateway(a, b, **settings) as one:
            assert one.router.sharing is not None
            staying, going = list(one.router.fleet)
            await until(lambda: None not in (staying.process_start, going.process_start))
            prefixes = [
                Prefix(endpoint.incarnation, [endpoint.lives, number, *range(100)])
                for number in range(300)
                for endpoint in (staying, going)
            ]
            pieces = one.router.sharing.replica.incoming(encode("x", prefixes), 0.0)
            next(pieces)
            going.process_start = 1.8e9
            one.router.fleet.begin_new_life(going)
            assert len(list(pieces)) >= 10
            assert set(one.router._index.holders) == {staying.targets[0].id}
            assert shared(one, "received") > 300
            assert shared(one, "unknown") > 200


async def test_nothing_is_believed_of_an_engine_that_has_restarted_since(redis: RedisServer) -> None:
    async with replicas(redis.url) as both:
        await both.until_connected()
        await both.converse(0)
        await until(lambda: shared(both.one, "received") == 1)  # so that nothing else is on its way
        old = [endpoint.incarnation for endpoint in both.one.router.fleet]
        for engine in both.engines:
            engine.serve_metrics(STARTED.format(1.8e9))
        for router in (both.one, both.other):
            await until(lambda router=router: all(each.lives == 2 for each in router.router.fleet))
        assert await both.one.metric(ENTRIES) == 0
        late = [Prefix(incarnation, [1, 2, 3]) for incarnation in old]
        await redis.publish(CHANNEL, encode("a slow router", late))
        await until(lambda: shared(both.one, "unknown") == 2)
        assert await both.one.metric(ENTRIES) == 0


async def test_the_sharing_ends_with_the_router(redis: RedisServer) -> None:
    async with replicas(redis.url) as both:
        await both.until_connected()
    assert not [task for task in asyncio.all_tasks() if "Sharing" in repr(task)]
    assert await redis.publish(CHANNEL, b"is anybody there?") == 0


@pytest.mark.parametrize(
    "url", ["http://:s3cret@redis", "unix:///s3cret", "s3cret", "redis://", "redis://:s3cret/x@redis", "redis://:6379"]
)
def test_a_wrong_url_is_refused_without_being_repeated(url: str) -> None:
    settings = RouterSettings(endpoint=["http://127.0.0.1:9"], redis_url=url)
    with pytest.raises(SettingsError, match=r"--redis-url: must be redis://") as refused:
        Router(settings, Descriptors(1000))
    assert "s3cret" not in str(refused.value) + repr(settings)
