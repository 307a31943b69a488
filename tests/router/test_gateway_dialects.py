"""A server with a dialect of OpenAI's API behind the gateway: what it is sent, and what clients get."""

import asyncio
import itertools
import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.backends.dialects.tgi import TGIDialect
from headwater.backends.dialects.vllm import VLLMDialect
from headwater_router.gateway.events import StreamReader
from headwater_router.gateway.translating import LONGEST, StreamRewriter, renaming_of, translated, translated_events
from tests.router.gateway import gateway
from tests.router.upstream import JSON, Exchange, upstream

SSE = b"content-type: text/event-stream\r\n"
CHAT = "/v1/chat/completions"


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def event(content: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": reason}
    return (
        b"data: " + json.dumps({"id": "", "model": "/models/m", "choices": [choice], "usage": None}).encode() + b"\n\n"
    )


async def test_tgi_gets_its_own_words_and_the_client_openais() -> None:
    answered = {
        "id": "", "model": "/models/m", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "choices": [{"index": 0, "message": {"content": "one five"}, "finish_reason": "stop_sequence"}],
    }  # fmt: skip
    async with upstream() as engine, gateway(engine, backend="tgi") as router:
        engine.answer = lambda exchange: exchange.whole(json.dumps(answered).encode(), 200, JSON)
        answer = await router.post(body(stop="five", top_p=1, stream=None))
        sent = json.loads(engine.exchanges[-1].body)
        assert sent["stop"] == ["five"]
        assert not {"top_p", "stream"} & set(sent)
        said = answer.json()
        assert (said["model"], said["choices"][0]["message"]["content"]) == ("m", "one ")
        assert said["choices"][0]["finish_reason"] == "stop"
        assert said["id"] == answer.headers["x-request-id"]
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="answered"}') == 1


async def test_a_stream_too() -> None:
    async with upstream() as engine, gateway(engine, backend="tgi") as router:
        events = event("one ") + event("fi") + event("ve", "stop_sequence") + b"data: [DONE]\n\n"
        engine.answer = lambda exchange: exchange.whole(events, 200, SSE)
        answer = await router.post(body(stop="five", stream=True))
        *said, done, _ = answer.content.split(b"\n\n")
        chunks = [json.loads(each.removeprefix(b"data: ")) for each in said]
        assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == "one "
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert {each["model"] for each in chunks} == {"m"}
        assert done == b"data: [DONE]"
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="answered"}') == 1


async def test_a_stream_whose_first_words_are_held_back_has_its_head_before_it() -> None:
    async def slowly(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for piece in (event("fi"), event("ne"), event("!", "length"), b"data: [DONE]\n\n", b""):
            await exchange.chunk(piece)
            await asyncio.sleep(0.02)

    async with upstream() as engine, gateway(engine, backend="tgi") as router:
        engine.answer = slowly
        answer = await router.post(body(stop="five", stream=True))
        said = [json.loads(each[6:]) for each in answer.content.split(b"\n\n") if each.startswith(b"data: {")]
        assert "".join(each["choices"][0]["delta"]["content"] for each in said) == "fine!"


async def test_a_text_that_breaks_off_is_not_whole() -> None:
    """TGI has an empty reason in each event of a text that goes on, where others have null."""
    piece = b'data: {"id":"","choices":[{"index":0,"text":"a","finish_reason":""}]}\n\n'
    async with upstream() as engine, gateway(engine, backend="tgi") as router:
        engine.answer = lambda exchange: exchange.whole(piece, 200, SSE)
        answer = await router.post(b'{"model":"m","prompt":"a","stream":true}', "/v1/completions")
        assert b'"error"' in answer.content
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="lost"}') == 1


async def test_what_it_cannot_do_is_a_400_that_was_not_sent() -> None:
    async with upstream() as one, upstream() as other, gateway(one, other, backend="tgi") as router:
        answer = await router.post(body(n=2))
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "n", "not_done_here")
        assert not one.exchanges
        assert not other.exchanges
        assert await router.metric('headwater_router_request_outcomes_total{model="m",outcome="unsupported"}') == 1
        for endpoint in router.router.fleet:
            assert endpoint.breaker.error_share(0.0) == 0.0


async def test_another_server_of_the_same_name_gets_what_it_cannot_do() -> None:
    async with upstream() as a, upstream() as b, upstream() as c, upstream() as d, upstream() as able:
        flags = [f"{each.url},name=t{number},backend=tgi" for number, each in enumerate((a, b, c, d))]
        settings = {"endpoint": [*flags, f"{able.url},name=v,backend=vllm"], "max_attempts": 2}
        async with gateway(ready=5, **settings) as router:
            for _ in range(10):
                assert (await router.post(body(n=2))).status_code == 200
            assert len(able.exchanges) == 10
            assert not a.exchanges + b.exchanges + c.exchanges + d.exchanges


@pytest.mark.parametrize(
    "raw", [b'{"model":"m","stop":"\xff"}', b'{"model":"m","top_p":NaN}', b'{"model":"m","n":tru}']
)
def test_what_makes_no_sense_is_for_the_server_to_judge(raw: bytes) -> None:
    assert translated(TGIDialect(), CHAT, raw, "m", "1") is None


def test_other_paths_are_not_read() -> None:
    assert translated(TGIDialect(), "/v1/embeddings", b'{"n":2}', "m", "1") is None


async def test_an_answer_too_long_to_translate_passes() -> None:
    long = b'{"choices":[{"index":0,"message":{"content":"' + b"x" * (2 * LONGEST) + b'"}}]}'

    async def answer(exchange: Exchange) -> None:
        await exchange.whole(long, 200, JSON)

    async with upstream() as engine, gateway(engine, backend="tgi") as router:
        engine.answer = answer
        assert (await router.post(body())).content == long


STREAM = b": a comment\n\n" + event("a") + event("b.") + b"\r\n\r\nevent: x\ndata: {odd\n\n" + event("c", "length")


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_it_does_not_matter_where_a_stream_is_cut(cuts: list[int]) -> None:
    def through(pieces: list[bytes]) -> bytes:
        done = translated(TGIDialect(), CHAT, body(stop="."), "m", "1")
        assert done is not None and done.translation is not None
        translator = StreamRewriter(partial(translated_events, done.translation))
        return b"".join(map(translator.feed, pieces)) + translator.end()

    places = sorted({0, *cuts, len(STREAM)})
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(places)]
    assert through(pieces) == through([STREAM])
    assert b": a comment\n\n" in through(pieces)


async def test_a_form_in_words_of_others_is_told_to_vllm_and_all_else_keeps_its_bytes() -> None:
    """vLLM ignores `guided_json`, with status 200, since version 0.12."""
    schema = {"type": "object"}
    async with upstream() as engine, gateway(engine) as router:
        engine.answer = lambda exchange: exchange.whole(b'{"choices":[{"message":{"content":"{}"}}]}', 200, JSON)
        await router.post(body(guided_json=schema))
        assert json.loads(engine.exchanges[-1].body) == json.loads(body(structured_outputs={"json": schema}))
        # Without `model`, too, where the gateway forgets what else it read of the body.
        await router.post(json.dumps({"messages": [], "guided_json": schema}).encode())
        assert json.loads(engine.exchanges[-1].body)["structured_outputs"] == {"json": schema}
        for as_it_came in (body(structured_outputs={"json": schema}), body(response_format={"type": "json_object"})):
            await router.post(as_it_came)
            assert engine.exchanges[-1].body == as_it_came


async def test_a_form_goes_to_whoever_can_keep_it_and_else_it_is_said_whose_server_cannot() -> None:
    async with upstream() as bare, upstream() as able:
        flags = [f"{bare.url},name=t,backend=transformers", f"{able.url},name=g,backend=sglang"]
        async with gateway(ready=2, endpoint=flags) as router:
            for _ in range(4):
                assert (await router.post(body(guided_choice=["a", "b"]))).status_code == 200
            assert [json.loads(each.body)["regex"] for each in able.exchanges] == ["(a|b)"] * 4
            assert not bare.exchanges
    async with upstream() as bare, gateway(bare, backend="transformers") as router:
        error = (await router.post(body(guided_choice=["a", "b"]))).json()["error"]
        assert (error["param"], error["code"]) == ("guided_choice", "not_done_here")
        assert "transformers serve" in error["message"]


# What was thought


WORDS = 'it has a "reasoning":"and more" in it'


def thought(**delta: Any) -> bytes:
    """An event as vLLM 0.32 writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None}
    return b"data: " + json.dumps({"id": "1", "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


BEGIN, DONE = thought(role="assistant", content=""), b"data: [DONE]\n\n"
THOUGHTS = [BEGIN, thought(reasoning="so"), thought(reasoning=WORDS), thought(reasoning=None, content=WORDS)]
THOUGHTS += [b": comment\n\n", thought(reasoning="", content="!"), thought(content="reasoning")]
THOUGHTS += [thought(reasoning="late"), DONE]
RENAMED = [each.replace(b'{"reasoning":"', b'{"reasoning_content":"') for each in THOUGHTS]
RENAMED[5] = THOUGHTS[5]
LATE = [BEGIN, thought(content=WORDS), thought(reasoning="late"), thought(content="."), DONE]
NOTHING_THOUGHT = [
    [BEGIN, thought(reasoning=None, content=WORDS), thought(reasoning="", content="x"), DONE],
    [BEGIN, thought(reasoning="so", reasoning_content="so"), thought(content=WORDS), DONE],
]


def renaming_reader() -> StreamReader:
    renaming, reader = renaming_of(VLLMDialect(), CHAT), StreamReader(CHAT)
    assert renaming is not None
    reader.rewrite(renaming.of_events, renaming.word)
    return reader


@given(st.lists(st.integers(0, sum(map(len, THOUGHTS))), max_size=12))
def test_what_vllm_thought_has_the_name_that_clients_know_however_its_stream_is_cut(cuts: list[int]) -> None:
    stream, reader = b"".join(THOUGHTS), renaming_reader()
    places = [0, *sorted(cuts), len(stream)]
    said = b"".join(reader.feed(stream[a:b]) for a, b in itertools.pairwise(places)) + reader.end()
    assert said == b"".join(RENAMED)
    assert reader.over


def test_what_it_thinks_after_it_spoke_does_wherever_its_stream_is_cut() -> None:
    stream = b"".join(LATE)
    for cut in range(1, len(stream)):
        reader = renaming_reader()
        said = reader.feed(stream[:cut]) + reader.feed(stream[cut:]) + reader.end()
        assert said == stream.replace(b'{"reasoning":"late"', b'{"reasoning_content":"late"'), cut


def test_no_event_of_its_stream_waits_for_another() -> None:
    reader = renaming_reader()
    assert [reader.feed(each) for each in THOUGHTS] == RENAMED


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, sum(map(len, THOUGHTS)) - 1), max_size=6))
def test_a_gateway_finds_it_however_the_stream_begins(cuts: list[int]) -> None:
    assert asyncio.run(told_in_pieces([b"".join(THOUGHTS)], cuts)) == b"".join(RENAMED)


@pytest.mark.parametrize("events", NOTHING_THOUGHT)
def test_a_stream_without_a_thought_keeps_its_bytes(events: list[bytes]) -> None:
    assert asyncio.run(told_in_pieces(events, [200, 300])) == b"".join(events)


async def told_in_pieces(events: list[bytes], cuts: list[int]) -> bytes:
    """What a client gets of vLLM's stream."""
    stream = b"".join(events)
    places = [0, *sorted({each for each in cuts if each < len(stream)}), len(stream)]

    async def in_pieces(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for start, end in itertools.pairwise(places):
            await exchange.chunk(stream[start:end])
            await asyncio.sleep(0.001)
        await exchange.chunk(b"")

    async with upstream() as engine, gateway(engine, backend="vllm") as router:
        engine.answer = in_pieces
        asked = body(stream=True, stream_options={"include_usage": True})
        return (await router.post(asked)).content


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "annotations"])
@pytest.mark.parametrize("value", ["so", "", None])
async def test_a_whole_answer_is_changed_only_where_something_was_thought(name: str, value: str | None) -> None:
    message = {"role": "assistant", "content": WORDS, name: value}
    document = json.dumps({"choices": [{"index": 0, "message": message}]}, separators=(",", ":")).encode()
    async with upstream() as engine, gateway(engine, backend="vllm") as router:
        engine.answer = lambda exchange: exchange.whole(document, 200, JSON)
        answer = await router.post(body())
    if (name, value) == ("reasoning", "so"):
        said = answer.json()["choices"][0]["message"]
        assert said == {"role": "assistant", "content": WORDS, "reasoning_content": "so"}
    else:
        assert (answer.content, answer.headers["content-length"]) == (document, str(len(document)))


async def test_what_other_servers_thought_keeps_its_bytes() -> None:
    async with upstream() as engine, gateway(engine, backend="headwater") as router:
        engine.answer = lambda exchange: exchange.whole(b"".join(THOUGHTS), 200, SSE)
        assert (await router.post(body(stream=True))).content == b"".join(THOUGHTS)
