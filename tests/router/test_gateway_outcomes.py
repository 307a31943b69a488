"""What becomes of a request where engines fail, lie, stall and are busy, as its client and the metrics see it."""

import asyncio
import gc
import json
import time
from typing import Any

import pytest

from headwater_router.dispatch.call import Call
from headwater_router.gateway.head import RequestHead
from tests.router.gateway import BODY, STREAM, gateway, until
from tests.router.streams import DONE, ROLE, USAGE, WORD, last_event, streaming
from tests.router.upstream import JSON, OK, SSE, Exchange, Handler, answer_with, never, stream_in_two, upstream

# Before the first token another endpoint can still be asked


@pytest.mark.parametrize(
    "said",
    [b": ping\n\n", b"\n\n", ROLE, b'event: response.created\ndata: {"type":"response.created"}\n\n'],
    ids=["a comment", "blank lines", "a role", "that there will be a response"],
)
async def test_what_comes_before_the_first_token_closes_no_window(said: bytes) -> None:
    async with upstream() as bad, upstream() as good, gateway(bad, good) as router:
        bad.answer, good.answer = streaming(said, end=False), streaming(ROLE, WORD, DONE)
        for _ in range(4):
            answer = await router.post(STREAM)
            assert answer.content.replace(b": ping\n\n", b"") == ROLE + WORD + DONE
        assert len(bad.exchanges) >= 2
        assert await router.metric('headwater_router_time_to_first_token_seconds_count{model="m"}') == 4


async def test_an_error_event_instead_of_an_answer_sends_the_request_elsewhere() -> None:
    async with upstream() as bad, upstream() as good, gateway(bad, good) as router:
        bad.answer, good.answer = streaming(b'data: {"error":{"code":500}}\n\n', DONE), streaming(WORD, DONE)
        assert {(await router.post(STREAM)).content for _ in range(4)} == {WORD + DONE}
        assert bad.exchanges


# Streams that are not whole say so


@pytest.mark.parametrize(
    ("pieces", "end"),
    [((ROLE, WORD), True), ((WORD,), False), ((WORD, b'data: {"choices":[{"del'), False)],
    ids=["without its end", "broken", "broken within a line"],
)
@pytest.mark.parametrize("backend", ["headwater", "vllm"])
async def test_a_stream_that_is_not_whole_ends_with_an_error_event(
    pieces: tuple[bytes, ...], end: bool, backend: str
) -> None:
    async with upstream() as engine, gateway(engine, backend=backend) as router:
        engine.answer = streaming(*pieces, end=end)
        # Where we asked for the usage, or a name in it may be another, what is cut of an event is held back.
        told = [each for each in pieces if backend == "headwater" or each.endswith(b"\n\n")]
        content = (await router.post(STREAM.replace(b"{", b'{"stream_options":{"include_usage":true},', 1))).content
        assert content.startswith(b"".join(told) + b"\n\n")
        assert last_event(content)["code"] == "endpoint_lost"
        assert await router.metric('headwater_router_broken_answers_total{endpoint="a"}') == 1
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="lost"}') == 1


async def test_a_stream_is_one_in_whatever_case_it_says_so() -> None:
    async def shouting(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\n" + SSE.replace(b"text/event-stream", b"Text/Event-Stream"))
        await exchange.write(b"transfer-encoding: chunked\r\n\r\n")
        await exchange.chunk(WORD)
        exchange.abort()

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = shouting
        assert last_event((await router.post(STREAM)).content)["code"] == "endpoint_lost"


async def test_an_answer_that_stands_still_is_ended_and_charged() -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(WORD)
        await exchange.connection.gone.wait()

    async with upstream() as engine, gateway(engine, stall_timeout=0.1) as router:
        engine.answer = stalls
        assert last_event((await router.post(STREAM)).content)["code"] == "endpoint_stalled"
        [endpoint] = router.router.fleet
        assert endpoint.breaker.suspicious is False
        assert endpoint.breaker.error_share(0.0) == 1.0


async def test_the_answers_of_an_endpoint_that_is_silent_for_several_probes_end() -> None:
    async def frozen(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(WORD)
        engine.pages[b"/health"] = never
        await exchange.connection.gone.wait()

    async with upstream() as engine, gateway(engine, probe_timeout=0.1, probe_failures=3) as router:
        engine.answer = frozen
        content = (await router.post(STREAM)).content
        assert content.startswith(WORD)
        assert last_event(content)["code"] == "endpoint_lost"
        assert router.in_flight == 0


async def test_hanging_replicas_take_the_time_of_one() -> None:
    async with upstream() as a, upstream() as b, upstream() as c, gateway(a, b, c, answer_timeout=0.2) as router:
        for engine in (a, b, c):
            engine.answer = never
        answer = await router.post()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "endpoint_timeout")
        assert sum(len(engine.exchanges) for engine in (a, b, c)) == 1


async def test_a_long_last_event_is_an_end_like_any_other() -> None:
    completed = {"type": "response.completed", "response": {"output": "word " * 5000, "usage": {"input_tokens": 5}}}
    last = b"event: response.completed\ndata: " + json.dumps(completed).encode() + b"\n\n"
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = streaming(b'data: {"type":"response.output_text.delta","delta":"Hi"}\n\n', last)
        answer = await router.post(b'{"model":"m","input":"hi","stream":true}', "/v1/responses")
        assert answer.content.endswith(last)
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="answered"}') == 1
        assert await router.metric('headwater_router_prompt_tokens_total{model="m"}') == 5


async def test_what_becomes_of_a_connection_behind_the_end_is_nobodys_loss() -> None:
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = streaming(WORD, DONE, end=False)
        assert (await router.post(STREAM)).content == WORD + DONE
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="answered"}') == 1
        [endpoint] = router.router.fleet
        assert endpoint.breaker.error_share(0.0) == 0.0


@pytest.mark.parametrize("policy", ["prefix", "least_loaded"])
@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b'{"error":{"message":"no"}}'), (200, b"<html>"), (200, b""), (302, b"{}"), (200, b'{"choices":[]}')],
    ids=["an error", "a page", "nothing", "elsewhere", "no choices"],
)
async def test_who_answers_with_nothing_draws_no_more_than_its_share(policy: str, status: int, body: bytes) -> None:
    async def takes_a_moment(exchange: Exchange) -> None:
        await asyncio.sleep(0.02)
        await exchange.whole()

    async with upstream() as a, upstream() as b, upstream() as bad, gateway(a, b, bad, policy=policy) as router:
        a.answer = b.answer = takes_a_moment
        bad.answer = answer_with(status, body)
        for _ in range(10):
            answers = await asyncio.gather(*(router.post() for _ in range(6)))
            assert {answer.status_code for answer in answers} == {200}
            assert {answer.content for answer in answers} == {OK}
        assert len(bad.exchanges) <= 25


# Back-pressure


async def test_a_busy_replica_is_left_alone_and_the_longest_wait_is_told() -> None:
    async def busy(exchange: Exchange) -> None:
        await exchange.whole(b'{"error":{"message":"busy"}}', 429, JSON + b"retry-after: 30\r\n")

    async with upstream() as a, upstream() as b, gateway(a, b) as router:
        a.answer = busy
        assert {(await router.post()).status_code for _ in range(6)} == {200}
        assert len(a.exchanges) == 1
        b.answer = busy
        answer = await router.post()
        assert (answer.status_code, 25 <= int(answer.headers["retry-after"]) <= 30) == (429, True)
        assert await router.metric('headwater_router_ejections_total{endpoint="a",reason="outlier"}') == 0


async def test_an_endpoint_that_asked_for_little_is_asked_again_while_another_that_asked_for_much_is_not() -> None:
    def busy(seconds: int) -> Handler:
        async def answer(exchange: Exchange) -> None:
            await exchange.whole(b"{}", 429, JSON + b"retry-after: %d\r\n" % seconds)

        return answer

    async with upstream() as a, upstream() as b, gateway(a, b) as router:
        a.answer, b.answer = busy(50), busy(1)
        assert (await router.post()).headers["retry-after"] == "50"
        a.exchanges.clear()
        b.answer = answer_with(200)
        router.router.dispatcher._clock = lambda: time.monotonic() + 2.0
        assert {(await router.post()).status_code for _ in range(6)} == {200}
        assert not a.exchanges


# One client's fault

KILLER = BODY.replace(b"hi", b"kill")


async def dies_of_it(exchange: Exchange) -> None:
    if b"kill" in exchange.body:
        exchange.abort()
    else:
        await exchange.whole()


async def test_a_request_that_kills_engines_kills_two() -> None:
    async with upstream() as a, upstream() as b, upstream() as c, upstream() as d, gateway(a, b, c, d) as router:
        for engine in (a, b, c, d):
            engine.answer = dies_of_it
        assert (await router.post(KILLER)).status_code == 502
        again = await router.post(KILLER)
        assert (again.status_code, again.json()["error"]["code"]) == (400, "request_breaks_engines")
        hit = [engine for engine in (a, b, c, d) if any(b"kill" in each.body for each in engine.exchanges)]
        assert len(hit) == 2
        assert {(await router.post()).status_code for _ in range(8)} == {200}


async def test_a_request_that_kills_engines_over_kept_connections_is_sent_twice() -> None:
    async with upstream() as a, upstream() as b, gateway(a, b) as router:
        a.answer = b.answer = dies_of_it
        for _ in range(4):
            await router.post()
        answers = [await router.post(KILLER) for _ in range(4)]
        assert [each.status_code for each in answers] == [502, 400, 400, 400]
        assert sum(b"kill" in each.body for engine in (a, b) for each in engine.exchanges) == 2


async def test_a_request_that_kills_engines_within_their_answers_is_found_too() -> None:
    async with upstream() as a, upstream() as b, upstream() as c, gateway(a, b, c) as router:
        for engine in (a, b, c):
            engine.answer = streaming(WORD, end=False)
        for _ in range(2):
            assert last_event((await router.post(STREAM)).content)["code"] == "endpoint_lost"
        again = await router.post(STREAM)
        assert (again.status_code, again.json()["error"]["code"]) == (400, "request_breaks_engines")
        assert sum(len(engine.exchanges) for engine in (a, b, c)) == 2


async def test_requests_whose_streams_lack_their_end_kill_no_engine() -> None:
    async with upstream() as a, upstream() as b, gateway(a, b) as router:
        a.answer = b.answer = streaming(WORD)
        answers = [await router.post(STREAM) for _ in range(6)]
        assert {last_event(each.content)["code"] for each in answers} == {"endpoint_lost"}


async def test_requests_that_all_fail_take_no_endpoint_out() -> None:
    async def fails_some(exchange: Exchange) -> None:
        await exchange.whole(OK, 500 if b"bad" in exchange.body else 200)

    async with upstream() as a, upstream() as b, gateway(a, b) as router:
        a.answer = b.answer = fails_some
        for number in range(12):
            assert (await router.post(BODY.replace(b"hi", b"bad %d" % number))).status_code == 500
        assert {(await router.post()).headers["x-headwater-endpoint"] for _ in range(4)} == {"a", "b"}


async def test_an_outlier_is_ejected_and_comes_back_when_a_probe_has_tried_it() -> None:
    async with upstream() as bad, upstream() as good, gateway(bad, good, breaker_open=0.2) as router:
        bad.answer = answer_with(500)
        for _ in range(20):
            assert (await router.post()).status_code == 200
        assert await router.metric('headwater_router_ejections_total{endpoint="a",reason="failing"}') >= 1
        bad.answer = answer_with(200, OK)
        before = len(bad.exchanges)
        await until(lambda: all(endpoint.breaker.closed for endpoint in router.router.fleet))
        for _ in range(4):
            await router.post()
        assert len(bad.exchanges) > before


# Usage, and what is kept


@pytest.mark.parametrize("asked", [False, True])
async def test_usage_is_always_known_and_passed_on_only_to_who_asked(asked: bool) -> None:
    body = STREAM.replace(b"{", b'{"stream_options":{"include_usage":true},', 1) if asked else STREAM
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = streaming(WORD, USAGE[:20], USAGE[20:], b": bye\n\n", DONE)
        answer = await router.post(body)
        assert answer.content == WORD + (USAGE if asked else b"") + b": bye\n\n" + DONE
        assert json.loads(engine.exchanges[0].body)["stream_options"] == {"include_usage": True}
        assert await router.metric('headwater_router_output_tokens_total{model="m"}') == 2


async def test_an_answer_has_its_head_before_it_wherever_its_first_content_is_cut() -> None:
    content = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    first = b"data: " + json.dumps(content).encode() + b"\r\n\r\n"
    async with upstream() as engine, gateway(engine) as router:
        for cut in range(len(first) - 4, len(first) + 1):
            pieces = [first[:cut], first[cut:], WORD]

            async def in_pieces(exchange: Exchange, pieces: list[bytes] = pieces) -> None:
                await exchange.begin_stream()
                for piece in filter(None, pieces):
                    await exchange.chunk(piece)
                    await asyncio.sleep(0.02)
                await exchange.chunk(DONE)
                await exchange.chunk(b"")

            engine.answer = in_pieces
            assert (await router.post(STREAM)).content == first + WORD + DONE


async def test_a_request_that_has_ended_is_not_left_to_the_garbage_collector() -> None:
    async with upstream() as engine, gateway(engine) as router:
        kept = router.router.dispatcher.decisions.maxlen or 0
        gc.collect()
        gc.disable()
        try:
            for _ in range(kept + 20):
                await router.post()
            calls = sum(type(each) is Call for each in gc.get_objects())
        finally:
            gc.enable()
        assert calls == kept


async def test_a_body_is_dropped_at_the_first_token() -> None:
    begin, release = asyncio.Event(), asyncio.Event()
    long = STREAM.replace(b"hi", b"word " * 20_000)

    async def late(exchange: Exchange) -> None:
        await begin.wait()
        await stream_in_two(WORD, DONE, release)(exchange)

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = late
        reader, _ = await router.open(long)
        await until(lambda: len(engine.exchanges) == 1)
        assert router.router.pages.bodies.in_flight == len(long)
        begin.set()
        await reader.readuntil(WORD)
        assert router.router.pages.bodies.in_flight == 0
        [dispatch] = router.router.dispatcher.decisions
        assert dispatch.call.body == b""
        release.set()
        await reader.readuntil(DONE)


@pytest.mark.parametrize("changed", [True, False], ids=["asked for the usage", "as it came"])
async def test_what_was_sent_to_an_engine_is_not_in_memory_while_its_answer_streams(
    changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sent(bytes):
        def __del__(self) -> None:
            freed.append(len(self))

    def sent(*arguments: Any) -> tuple[bytes, bytes]:
        head, body = of(*arguments)
        assert (body == long) is not changed
        return head, Sent(body)

    freed: list[int] = []
    of = RequestHead.of
    monkeypatch.setattr(RequestHead, "of", sent)
    long = STREAM.replace(b"hi", b"word " * 20_000)
    if not changed:
        long = long.replace(b'"stream":true', b'"stream":true,"stream_options":{"include_usage":true}')
    release = asyncio.Event()
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = stream_in_two(WORD, DONE, release)
        reader, _ = await router.open(long)
        await reader.readuntil(WORD)
        await until(lambda: len(freed) == 1)
        assert freed[0] >= len(long)
        release.set()
        await reader.readuntil(DONE)


async def test_each_request_has_exactly_one_outcome() -> None:
    async with upstream() as engine, gateway(engine) as router:
        await router.post()
        engine.answer = answer_with(400)
        await router.post()
        engine.answer = never
        _, writer = await router.open(STREAM)
        await until(lambda: len(engine.exchanges) == 3)
        writer.transport.abort()
        await until(lambda: router.in_flight == 0)
        await until(lambda: router.router.forwarder.open_requests == 0)
        counted = {
            outcome: await router.metric(f'headwater_router_request_outcomes_total{{model="m",outcome="{outcome}"}}')
            for outcome in ("answered", "refused", "client_left", "rejected", "failed", "lost")
        }
        assert counted == {"answered": 1, "refused": 1, "client_left": 1, "rejected": 0, "failed": 0, "lost": 0}
        assert await router.metric('headwater_router_requests_total{status="499"}') == 1
