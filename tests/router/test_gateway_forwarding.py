"""What is forwarded is the client's own bytes, and what comes back is the engine's, as it comes."""

import asyncio
import json

import httpx
import openai
import pytest

from tests.router.gateway import BODY, CHAT, STREAM, gateway, until
from tests.router.upstream import WORD, Exchange, stream_in_two, upstream

USAGE = b'"usage":{"prompt_tokens":40,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":32}}'


async def test_the_engine_gets_the_clients_own_bytes() -> None:
    body = b'{ "messages" : [ {"role":"user","content":"\\u00e9 \xc3\xa9 \\n"} ],\n "model":"m", "unknown":[1e2, 1.0] }'
    async with upstream() as engine, gateway(engine) as router:
        await router.client.post(f"{CHAT}?a=1%20b", content=body, headers={"authorization": "Bearer k", "x-own": "1"})
        [exchange] = engine.exchanges
        assert exchange.body == body
        assert exchange.line == b"POST " + CHAT.encode() + b"?a=1%20b HTTP/1.1"
        assert exchange.headers[b"host"] == f"127.0.0.1:{engine.port}".encode()
        assert exchange.headers[b"authorization"] == b"Bearer k"
        assert exchange.headers[b"x-own"] == b"1"
        assert int(exchange.headers[b"content-length"]) == len(body)


@pytest.mark.parametrize("said", [None, "application/x-www-form-urlencoded", "application/json; charset=utf-8"])
async def test_what_was_read_as_json_is_said_to_be(said: str | None) -> None:
    """curl says that it sends a form, and some clients say nothing."""
    async with upstream() as engine, gateway(engine) as router:
        await router.client.post(CHAT, content=BODY, headers={} if said is None else {"content-type": said})
        assert engine.exchanges[0].headers[b"content-type"] == b"application/json"
        assert engine.exchanges[0].body == BODY


async def test_headers_of_the_clients_connection_stay_behind() -> None:
    async with upstream() as engine, gateway(engine) as router:
        await router.post(BODY, connection="keep-alive, x-hop", x_hop="1", te="trailers", accept_encoding="gzip")
        headers = engine.exchanges[0].headers
        assert not headers.keys() & {b"connection", b"x-hop", b"te", b"accept-encoding", b"transfer-encoding"}


async def test_a_body_sent_in_chunks_goes_upstream_in_one_piece() -> None:
    async def pieces():  # type: ignore[no-untyped-def]
        yield BODY[:10]
        yield BODY[10:]

    async with upstream() as engine, gateway(engine) as router:
        await router.client.post(CHAT, content=pieces())
        assert engine.exchanges[0].body == BODY


async def test_the_request_id_of_the_client_goes_both_ways() -> None:
    async with upstream() as engine, gateway(engine) as router:
        answer = await router.post(x_request_id="mine")
        assert engine.exchanges[0].headers[b"x-request-id"] == b"mine"
        assert answer.headers.get_list("x-request-id") == ["mine"]


async def test_a_request_without_an_id_gets_one_of_its_own() -> None:
    async with upstream() as engine, gateway(engine) as router:
        ids = [(await router.post()).headers["x-request-id"] for _ in range(2)]
        assert ids == [exchange.headers[b"x-request-id"].decode() for exchange in engine.exchanges]
        assert len(set(ids)) == 2


async def test_an_engines_own_request_id_is_not_added_to_ours() -> None:
    async def with_id(exchange: Exchange) -> None:
        await exchange.whole(headers=b"x-request-id: engine\r\nx-kept: 1\r\n")

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = with_id
        answer = await router.post(x_request_id="mine")
        assert answer.headers.get_list("x-request-id") == ["mine"]
        assert answer.headers["x-kept"] == "1"


async def test_the_answer_says_which_endpoint_gave_it_and_what_the_choice_knew() -> None:
    async with upstream() as engine, gateway(engine, policy="prefix") as router:
        question = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 400}]}).encode()
        answer = await router.post(question)
        assert answer.headers["x-headwater-endpoint"] == "a"
        assert answer.headers["x-headwater-decision"] == "approximate"


async def by_length(exchange: Exchange) -> None:
    await exchange.whole(b"first,second")


async def by_chunks(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    await exchange.write(b"7\r\n,second\r\n0\r\n\r\n")


async def until_close(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\n\r\nfirst")
    await exchange.write(b",second")
    exchange.connection.transport.close()


@pytest.mark.parametrize("answer", [by_length, by_chunks, until_close])
async def test_answers_arrive_whole_however_their_length_is_told(answer) -> None:  # type: ignore[no-untyped-def]
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = answer
        for _ in range(2):
            got = await router.post(path="/v1/embeddings")
            assert (got.status_code, got.content) == (200, b"first,second")


@pytest.mark.parametrize("status", [400, 404, 422, 429])
async def test_an_engines_own_refusal_is_passed_on_whatever_its_status(status: int) -> None:
    own = b'{"error":  {"message":"no","own":1}}'

    async def refuse(exchange: Exchange) -> None:
        await exchange.whole(own, status, b"retry-after: 7\r\n")

    async with upstream() as engine, upstream() as other, gateway(engine, other) as router:
        engine.answer = other.answer = refuse
        answer = await router.post(path="/v1/embeddings")
        assert (answer.status_code, answer.content) == (status, own)
        assert answer.headers["retry-after"] == "7"
        # Another engine may be of another mind: it may know the model, or have room.
        assert len(engine.exchanges) + len(other.exchanges) == (2 if status in (404, 429) else 1)


async def test_an_answer_without_a_body_is_passed_on() -> None:
    async def empty(exchange: Exchange) -> None:
        await exchange.whole(b"")

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = empty
        answer = await router.post(path="/v1/embeddings")
        assert (answer.status_code, answer.content) == (200, b"")


async def test_connections_to_an_engine_are_kept() -> None:
    async with upstream() as engine, gateway(engine) as router:
        for _ in range(3):
            await router.post()
        assert len({exchange.connection for exchange in engine.exchanges}) == 1


async def test_an_idle_connection_that_the_engine_closed_is_not_used_again() -> None:
    async with upstream() as engine, gateway(engine) as router:
        await router.post()
        engine.exchanges[0].connection.transport.close()
        await until(lambda: engine.post_connections == 0)
        assert (await router.post()).status_code == 200


async def test_a_kept_connection_that_closes_under_the_next_request_costs_nothing() -> None:
    async def close_kept_ones(exchange: Exchange) -> None:
        if exchange.connection.served_posts > 1:
            exchange.abort()
        else:
            await exchange.whole()

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = close_kept_ones
        assert [(await router.post()).status_code for _ in range(3)] == [200] * 3
        assert await router.metric('headwater_router_endpoint_breaker{endpoint="a"}') == 0


async def test_a_stream_passes_chunk_by_chunk() -> None:
    seen = asyncio.Queue[bytes]()

    async def after_each_other(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for number in range(3):
            await exchange.chunk(WORD % b"%d" % number)
            # The next chunk is not there before the client has this one.
            assert await seen.get() == WORD % b"%d" % number
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.chunk(b"")

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = after_each_other
        async with router.client.stream("POST", CHAT, content=STREAM) as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            chunks = []
            async for chunk in answer.aiter_raw():
                chunks.append(chunk)
                seen.put_nowait(chunk)
        assert b"".join(chunks) == b"".join(WORD % b"%d" % number for number in range(3)) + b"data: [DONE]\n\n"


async def test_a_slow_client_holds_the_engine_back() -> None:
    mib, total, sent = b"x" * 2**20, 128, 0

    async def large(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (total * 2**20))
        for _ in range(total):
            await exchange.write(mib)
            sent += 1

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = large
        reader, writer = await router.open(BODY)
        still, last = 0, -1

        def no_progress() -> bool:
            nonlocal still, last
            still = still + 1 if sent == last else 0
            last = sent
            return still > 100

        await until(no_progress)
        # What the kernel's socket buffers take, and a little of the router's own.
        assert sent < 64
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(total * 2**20) == mib * total
        writer.close()


async def test_three_hundred_streams_are_open_at_once() -> None:
    all_open = asyncio.Event()
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = stream_in_two(WORD % b"0", b"data: [DONE]\n\n", all_open)
        clients = [asyncio.create_task(router.post(STREAM)) for _ in range(300)]
        await until(lambda: len(engine.exchanges) == 300)
        assert router.in_flight == 300
        all_open.set()
        answers = await asyncio.gather(*clients)
        assert {answer.content for answer in answers} == {WORD % b"0" + b"data: [DONE]\n\n"}


@pytest.mark.parametrize("streamed", [False, True])
async def test_usage_is_read_off_the_answer_as_it_passes(streamed: bool) -> None:
    async def with_usage(exchange: Exchange) -> None:
        if streamed:
            await exchange.begin_stream()
            await exchange.chunk(WORD % b"1" + b"data: {" + USAGE + b"}\n\ndata: [DONE]\n\n")
            await exchange.chunk(b"")
        else:
            await exchange.whole(b'{"choices":[{}],' + USAGE + b"}")

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = with_usage
        await router.post(STREAM if streamed else BODY)
        assert await router.metric('headwater_router_prompt_tokens_total{model="m"}') == 40
        assert await router.metric('headwater_router_actual_cached_tokens_total{model="m"}') == 32


async def test_aliases_of_one_model_are_one_model_to_a_request_that_names_none() -> None:
    cards = [{"id": "m", "root": "weights"}, {"id": "alias", "root": "weights"}, {"id": "lora", "parent": "m"}]
    async with upstream(*cards) as engine, gateway(engine) as router:
        assert (await router.post(b'{"prompt":"x"}', "/v1/completions")).status_code == 200


async def test_the_models_of_all_endpoints_are_listed() -> None:
    async with (
        upstream("m", "n") as one,
        upstream("n", {"id": "lora", "parent": "n"}) as two,
        gateway(one, two) as router,
    ):
        cards = (await router.client.get("/v1/models")).json()
        assert cards["object"] == "list"
        assert [(card["id"], card["parent"]) for card in cards["data"]] == [("lora", "n"), ("m", None), ("n", None)]
        assert (await router.client.get("/v1/models/lora")).json()["parent"] == "n"
        assert (await router.client.get("/v1/models/no")).status_code == 404


async def test_the_list_says_which_models_an_engine_takes_requests_for() -> None:
    async with upstream("alive") as one, upstream("dead") as two, gateway(one, two) as router:
        two.pages[b"/health"] = (503, b"{}")
        await router.until_ready(1)
        listed = openai.types.Model.model_validate
        cards = [listed(card) for card in (await router.client.get("/v1/models")).json()["data"]]
        assert [(card.id, card.model_extra and card.model_extra["ready"]) for card in cards] == [
            ("alive", True),
            ("dead", False),
        ]
        assert (await router.client.get("/v1/models/dead")).json()["ready"] is False


async def test_ready_says_whether_requests_should_come() -> None:
    async with upstream() as engine, gateway(engine) as router:
        assert (await router.client.get("/ready")).json() == {"status": "ready", "ready_endpoints": 1, "endpoints": 1}
        engine.pages[b"/health"] = (503, b"{}")
        await router.until_ready(0)
        assert (await router.client.get("/ready")).status_code == 503
        assert (await router.client.get("/health")).status_code == 200


async def test_metrics_count_what_was_forwarded() -> None:
    async with upstream() as engine, gateway(engine) as router:
        await router.post()
        assert await router.metric('headwater_router_requests_total{status="200"}') == 1
        assert await router.metric('headwater_router_decisions_total{label="fallback"}') == 1
        assert await router.metric("headwater_router_overhead_seconds_count") == 1
        assert await router.metric('headwater_router_endpoint_ready{endpoint="a"}') == 1
        assert await router.metric('headwater_router_endpoint_in_flight{endpoint="a"}') == 0


async def test_the_version_is_there() -> None:
    from headwater import __version__

    async with upstream() as engine, gateway(engine) as router:
        answer: httpx.Response = await router.client.get("/version")
        assert answer.json() == {"version": __version__}


@pytest.mark.parametrize("given", [{}, {"model": None}])
async def test_a_body_without_a_model_goes_upstream_with_the_only_one_there_is(given: dict[str, None]) -> None:
    async with upstream("m") as engine, gateway(engine) as router:
        assert (await router.post(json.dumps({"prompt": "x"} | given).encode(), "/v1/completions")).status_code == 200
        [exchange] = engine.exchanges
        assert json.loads(exchange.body) == {"prompt": "x", "model": "m"}
