"""What streams of other servers were found to lack, in each API: usage, deltas that say something, names of tokens."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from headwater_engine.core.messages import FinishReason, TokenLogprobs
from tests.engine.fake_engine import FakeEngine, sorted_alphabet
from tests.engine.front import CHAT, TEXT, events, post
from tests.engine.test_server_fields import END_OF_TURN
from tests.engine.test_server_other_apis import MESSAGE, RESPONSE, named_events

SAID, CACHED = "Hello", 3
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": TEXT,
    "/v1/responses": RESPONSE,
    "/v1/messages": MESSAGE,
}
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


async def asked(http: httpx.AsyncClient, engine: FakeEngine, path: str, **fields: Any) -> tuple[httpx.Response, int]:
    """The answer of two pieces, and how many tokens the prompt had."""
    if fields and not path.endswith("completions"):
        fields = {"stream": True}
    answer = post(http, path, BODIES[path] | fields)
    question = await engine.hear_question()
    await engine.answer(question, SAID[:3], cached_tokens=CACHED)
    await engine.answer(question, SAID[3:], FinishReason.STOP)
    return await answer, len(question.prompt)


def counted(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Of the prompt, of those cached, of the answer, in whichever API's words."""
    if "prompt_tokens" in usage:
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]
    if "input_tokens_details" in usage:
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        return usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"]
    cached = usage["cache_read_input_tokens"]
    return usage["input_tokens"] + cached, cached, usage["output_tokens"]


def told_last(path: str, answer: httpx.Response) -> dict[str, Any]:
    """The usage of a stream."""
    if path.endswith("completions"):
        usage: dict[str, Any] = events(answer)[-1]["usage"]
        return usage
    *_, (name, before), (last, data) = named_events(answer)
    if last == "response.completed":
        return dict(data["response"]["usage"])
    assert (name, last) == ("message_delta", "message_stop")
    return dict(before["usage"])


@pytest.mark.parametrize("path", BODIES)
async def test_usage_is_told_streamed_or_not(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    answer, prompt = await asked(http, engine, path)
    assert counted(answer.json()["usage"]) == (prompt, CACHED, len(SAID))
    answer, prompt = await asked(http, engine, path, **STREAMED)
    assert counted(told_last(path, answer)) == (prompt, CACHED, len(SAID))


def deltas(path: str, answer: httpx.Response) -> Iterator[Any]:
    """What each piece says."""
    if path.endswith("completions"):
        for choice in (choice for chunk in events(answer) for choice in chunk["choices"]):
            said = choice["text"] if "text" in choice else choice["delta"]
            yield said if not choice["finish_reason"] else said or "the end"
        return
    for name, data in named_events(answer):
        if name in ("response.output_text.delta", "content_block_delta"):
            yield data["delta"] if isinstance(data["delta"], str) else data["delta"]["text"]


@pytest.mark.parametrize("path", BODIES)
async def test_no_piece_of_a_stream_is_empty(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    answer, _ = await asked(http, engine, path, stream=True)
    found = list(deltas(path, answer))
    assert found and all(found)


async def test_usage_so_far_grows_with_each_piece(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    options = STREAMED["stream_options"] | {"continuous_usage_stats": True}
    answer = post(http, "/v1/chat/completions", CHAT | STREAMED | {"stream_options": options})
    question = await engine.hear_question()
    await engine.answer(question, "a")
    await engine.answer(question, "b")
    await engine.answer(question, "c", FinishReason.LENGTH)
    said = [chunk["usage"]["completion_tokens"] for chunk in events(await answer)]
    assert said == sorted(said) and set(said) == {1, 2, 3}


async def test_special_tokens_have_their_names_among_log_probabilities(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """Though they have no text in the answer."""
    letter = sorted_alphabet().index("a")
    told = [
        TokenLogprobs(letter, -0.5, 1, [(END_OF_TURN, -1.0)]),
        TokenLogprobs(END_OF_TURN, -0.2, 1, [(END_OF_TURN, -0.2)]),
    ]
    answer = post(http, "/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 1})
    question = await engine.hear_question()
    await engine.answer(question, "a", logprobs=told[:1])
    await engine.answer(question, "b", FinishReason.LENGTH, logprobs=told[1:])
    content = (await answer).json()["choices"][0]["logprobs"]["content"]
    assert [each["token"].startswith("<|") for each in content] == [False, True]
    assert all(each["top_logprobs"][0]["token"].startswith("<|") for each in content)
    assert all(bytes(each["bytes"]).decode() == each["token"] for each in content)


async def test_tokens_that_came_with_a_stop_string_and_behind_it_are_not_counted(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """As those that a form leaves no choice of do."""
    answer = post(http, "/v1/completions", TEXT | {"stop": ["ll"]})
    await engine.answer(await engine.hear_question(), SAID)
    told = (await answer).json()
    assert told["choices"][0]["text"] == "He"
    assert told["usage"]["completion_tokens"] == len("Hell")
