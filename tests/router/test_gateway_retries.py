"""Before the first byte, a request that fails goes elsewhere; after it, never."""

import json

import pytest

from tests.router.gateway import STREAM, gateway, until
from tests.router.upstream import Exchange, Handler, answer_with, never, upstream


async def reset(exchange: Exchange) -> None:
    exchange.abort()


async def half_a_head(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-le")
    exchange.connection.transport.close()


async def head_without_a_body(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
    exchange.connection.transport.close()


async def nonsense(exchange: Exchange) -> None:
    await exchange.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


FAILURES = {
    "reset": reset,
    "half a head": half_a_head,
    "head without a body": head_without_a_body,
    "nonsense": nonsense,
    "internal error": answer_with(500),
    "unavailable": answer_with(503),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
async def test_a_failure_before_the_first_byte_is_not_seen_by_the_client(failure: Handler) -> None:
    async with upstream() as bad, upstream() as good, gateway(bad, good) as router:
        bad.answer = failure
        for _ in range(4):
            answer = await router.post()
            assert (answer.status_code, answer.headers["x-headwater-endpoint"]) == (200, "b")
        assert bad.exchanges
        assert router.in_flight == 0


async def test_retries_are_counted_by_reason() -> None:
    async with upstream() as bad, upstream() as good, gateway(bad, good) as router:
        for failure, reason in ((reset, "lost"), (nonsense, "failed"), (answer_with(401), "denied")):
            bad.answer = failure
            for _ in range(2):
                await router.post()
            assert await router.metric(f'headwater_router_retries_total{{reason="{reason}"}}') >= 1


async def test_an_engine_that_is_gone_costs_nothing() -> None:
    async with upstream() as good:
        async with upstream() as gone:
            router_context = gateway(gone, good, probe_interval=60.0)
            router = await router_context.__aenter__()
        try:
            # Nobody listens there any more, and no probe has found out yet.
            answers = [await router.post() for _ in range(6)]
            assert {answer.status_code for answer in answers} == {200}
            assert await router.metric('headwater_router_endpoint_ready{endpoint="a"}') == 0
        finally:
            await router_context.__aexit__(None, None, None)


async def test_a_bad_request_is_not_tried_again() -> None:
    async with upstream() as engine, upstream() as other, gateway(engine, other) as router:
        engine.answer = other.answer = answer_with(400, b'{"error":{}}')
        assert (await router.post()).status_code == 400
        assert len(engine.exchanges) + len(other.exchanges) == 1


async def test_the_last_endpoints_own_error_is_passed_on() -> None:
    async with upstream() as engine, upstream() as other, gateway(engine, other) as router:
        own = b'{"error":  {"message":"no","own":1}}'
        engine.answer = other.answer = answer_with(500, own)
        answer = await router.post()
        assert (answer.status_code, answer.content) == (500, own)
        assert len(engine.exchanges) == len(other.exchanges) == 1


async def test_no_more_attempts_than_allowed() -> None:
    async with upstream() as a, upstream() as b, upstream() as c, gateway(a, b, c, max_attempts=2) as router:
        for engine in (a, b, c):
            engine.answer = reset
        answer = await router.post()
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "endpoint_lost"
        assert sum(len(engine.exchanges) for engine in (a, b, c)) == 2


async def test_a_stream_that_breaks_ends_with_an_error_event_and_is_not_begun_anew() -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(b'data: {"n":1}\n\n')
        exchange.abort()

    async with upstream() as engine, upstream() as other, gateway(engine, other) as router:
        engine.answer = other.answer = breaks
        answer = await router.post(STREAM)
        first, last = answer.content.decode().split("\n\n", 1)
        assert first == 'data: {"n":1}'
        assert json.loads(last.partition("data: ")[2].split("\n")[0])["error"]["code"] == "endpoint_lost"
        assert len(engine.exchanges) + len(other.exchanges) == 1
        await until(lambda: router.in_flight == 0)


async def test_an_answer_that_does_not_begin_in_time_is_a_504() -> None:
    async with upstream() as engine, gateway(engine, answer_timeout=0.05) as router:
        engine.answer = never
        answer = await router.post()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "endpoint_timeout")
        await until(lambda: engine.post_connections == 0)
