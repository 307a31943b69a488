"""What engines refuse with, as recorded from real ones, and what a client of the OpenAI API gets of it."""

import asyncio
import json
from typing import Any

import pytest

from headwater import backends
from headwater_router.gateway.refusals import LONGEST, read_refusal
from tests.router.gateway import STREAM, gateway
from tests.router.upstream import JSON, OK, Exchange, upstream

TGI_FULL = b'data: {"error":{"message":"Model is overloaded","http_status_code":422}}\n\ndata: [DONE]\n\n'
TGI_LONG = (
    b'data: {"error":{"message":"Input validation error: `inputs` must have less than 250 tokens. Given: 2829",'
    b'"http_status_code":422}}\n\ndata: [DONE]\n\n'
)
SSE = b"content-type: text/event-stream\r\n"

RECORDED: dict[str, tuple[str, int, bytes, int, str, str]] = {
    "TGI's validation": (
        "tgi", 422,
        b'{"error":"Input validation error: `top_p` must be > 0.0 and < 1.0","error_type":"validation"}',
        400, "invalid_request_error", "Input validation error: `top_p` must be > 0.0 and < 1.0",
    ),
    "TGI's text": (
        "tgi", 422, b"Failed to deserialize the JSON body into the target type: stop: invalid type\n",
        400, "invalid_request_error", "Failed to deserialize the JSON body into the target type: stop: invalid type",
    ),
    "TGI's overload": (
        "tgi", 429, b'{"error":"Model is overloaded","error_type":"overloaded"}',
        429, "rate_limit_error", "Model is overloaded",
    ),
    "TGI's shard": (
        "tgi", 424, b'{"error":"Request failed during generation: out of memory","error_type":"generation"}',
        500, "server_error", "Request failed during generation: out of memory",
    ),
    "nothing": ("tgi", 404, b"", 404, "invalid_request_error", "The endpoint answered with 404, and did not say why."),
    "SGLang's": (
        "sglang", 400, b'{"object":"error","message":"too long","type":"BadRequest","param":null,"code":400}',
        400, "invalid_request_error", "too long",
    ),
    "FastAPI's list": (
        "transformers", 422, b'{"detail":[{"loc":["body","messages",0,"role"],"msg":"Field required"},{"msg":"x"}, 3]}',
        400, "invalid_request_error", "messages.0.role: Field required; x; 3",
    ),
    "FastAPI's text": ("transformers", 404, b'{"detail":"Not Found"}', 404, "invalid_request_error", "Not Found"),
    "a proxy's page": ("vllm", 502, b"<html>\n<b>Bad\xff", 502, "server_error", "<html> <b>Bad\ufffd"),
    "a list": ("vllm", 500, b"[1]", 500, "server_error", "[1]"),
    "a deep one": ("vllm", 400, b"[" * 5000, 400, "invalid_request_error", "[" * 1000),
}  # fmt: skip


@pytest.mark.parametrize(("backend", "status", "body", "shown", "kind", "message"), RECORDED.values(), ids=RECORDED)
async def test_clients_get_openais_shape_whatever_the_engine_wrote(
    backend: str, status: int, body: bytes, shown: int, kind: str, message: str
) -> None:
    async with upstream() as engine, gateway(engine, backend=backend) as router:
        engine.answer = lambda exchange: exchange.whole(body, status, b"content-type: text/plain\r\nvary: origin\r\n")
        answer = await router.post()
        assert answer.status_code == shown
        assert answer.json() == {"error": {"message": message, "type": kind, "param": None, "code": None}}
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["vary"] == "origin", "what else it said"


async def test_what_is_in_openais_shape_goes_on_as_it_came() -> None:
    body = b'{"error": {"message":  "no", "type": "its own", "own": 1}}'
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = lambda exchange: exchange.whole(body, 422, JSON)
        answer = await router.post()
        assert (answer.status_code, answer.content) == (422, body)


async def test_what_is_longer_than_a_refusal_goes_on_as_it_comes() -> None:
    body = b"x" * (4 * LONGEST)
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = lambda exchange: exchange.whole(body, 500, b"content-type: text/plain\r\n")
        answer = await router.post()
        assert (answer.status_code, answer.content) == (500, body)


@pytest.mark.parametrize("backend", backends.names())
@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"error":null}', b'{"detail":[]}', b'{"message":5}', b"\xff"])
def test_any_body_makes_a_refusal(backend: str, body: bytes) -> None:
    refusal = read_refusal(backends.get(backend), 400, body)
    assert isinstance(refusal.document["error"]["message"], str)


# Streams that are refused with status 200


async def test_of_two_of_which_one_is_full_no_stream_is_lost() -> None:
    async def full(exchange: Exchange) -> None:
        await exchange.whole(TGI_FULL, 200, SSE)

    async with upstream() as one, upstream() as other, gateway(one, other, backend="tgi") as router:
        one.answer = full
        other.answer = lambda exchange: exchange.whole(
            b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n', 200, SSE
        )
        answers = await asyncio.gather(*(router.post(STREAM) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert all(b"Hi" in answer.content for answer in answers)
        assert len(one.exchanges) < 20, "it is left alone for a while"


async def test_where_all_are_full_a_stream_is_refused_with_429() -> None:
    async with upstream() as one, upstream() as other, gateway(one, other, backend="tgi") as router:
        one.answer = other.answer = lambda exchange: exchange.whole(TGI_FULL, 200, SSE)
        answer = await router.post(STREAM)
        assert (answer.status_code, answer.json()["error"]["message"]) == (429, "Model is overloaded")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="overloaded"}') == 1


async def test_a_stream_that_no_engine_would_take_is_the_clients_own_400() -> None:
    async with upstream() as one, upstream() as other, gateway(one, other, backend="tgi") as router:
        one.answer = other.answer = lambda exchange: exchange.whole(TGI_LONG, 200, SSE)
        answer = await router.post(STREAM)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("Input validation error: `inputs` must have less")
        assert answer.headers["content-type"] == "application/json"
        assert len(one.exchanges) + len(other.exchanges) == 1
        for endpoint in router.router.fleet:
            assert endpoint.breaker.error_share(0.0) == 0.0


ERRORS: dict[str, tuple[bytes, int, str]] = {
    "vLLM's": (b'data: {"error":{"message":"no","type":"BadRequestError","code":400}}\n\n', 400, "no"),
    "without a status": (b'data: {"error":{"message":"no"}}\n\n', 502, "no"),
    "behind a role": (
        b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\ndata: {"error":"no"}\n\n', 502, "no"),
    "named": (b'event: error\ndata: {"message":"no","code":503}\n\n', 503, "no"),
    "named, in text": (b"event: error\ndata: out of memory\n\n", 502, "out of memory"),
    "TGI's call that it could not read": (
        b'data: {"object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n',
        502, "The endpoint sent a stream without content."),
    "named, and nothing": (b"event: error\n\n", 502, "The endpoint answered with 502, and did not say why."),
}  # fmt: skip


@pytest.mark.parametrize(("events", "status", "message"), ERRORS.values(), ids=ERRORS)
async def test_a_stream_that_begins_with_an_error_is_one(events: bytes, status: int, message: str) -> None:
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = lambda exchange: exchange.whole(events + b"data: [DONE]\n\n", 200, SSE)
        answer = await router.post(STREAM)
        assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)


@pytest.mark.parametrize("pieces", [1, 3])
async def test_an_error_with_status_200_has_the_status_that_it_tells(pieces: int) -> None:
    document = json.dumps({"error": {"message": "too long" + "x" * 5000, "code": 400}}).encode()

    async def in_pieces(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\n" + JSON + b"content-length: %d\r\n\r\n" % len(document))
        size = len(document) // pieces + 1
        for start in range(0, len(document), size):
            await exchange.write(document[start : start + size])
            await asyncio.sleep(0.01)

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = in_pieces
        answer = await router.post()
        error: dict[str, Any] = answer.json()["error"]
        assert (answer.status_code, error["message"][:8], error["type"]) == (400, "too long", "invalid_request_error")


async def test_a_step_that_failed_on_one_is_tried_on_another() -> None:
    failed = RECORDED["TGI's shard"][2]
    async with upstream() as one, upstream() as other, gateway(one, other, backend="tgi") as router:
        one.answer = lambda exchange: exchange.whole(failed, 424, JSON)
        answers = [await router.post() for _ in range(6)]
        assert [answer.json()["choices"] for answer in answers] == [json.loads(OK)["choices"]] * 6
