"""Tools and reasoning through the HTTP server: what is asked of the engine, and what becomes of what it says."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from headwater.openai.constraint import Kind
from headwater_engine.core.messages import Abort, FinishReason, Refusal
from tests.engine.chat_models import FIXTURES
from tests.engine.fake_engine import FakeEngine
from tests.engine.front import CHAT, events, post, serving, until

PATH = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}},
    {"type": "function", "function": {"name": "clock"}},
]
CALL = '<tool_call> {"name": "weather", "arguments": {"city": "Bern"}} </tool_call>'
CALLS = f'{CALL} <tool_call> {{"name": "clock", "arguments": {{}}}} </tool_call>'


@pytest.fixture
async def http(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with server(engine, reasoning_parser="think") as http:
        yield http


class server:  # noqa: N801  # reads as a function does
    """A server before `engine`, with room for tools in words."""

    def __init__(self, engine: FakeEngine, **settings: Any) -> None:
        self._engine = engine
        self._serving = serving(engine, **settings)

    async def __aenter__(self) -> httpx.AsyncClient:
        http = await self._serving.__aenter__()
        await self._engine.be_ready(max_model_len=2048)
        await until(http, "/ready", 200)
        return http

    async def __aexit__(self, *error: Any) -> None:
        await self._serving.__aexit__(*error)


async def answered(
    http: httpx.AsyncClient,
    engine: FakeEngine,
    text: str,
    finish: FinishReason = FinishReason.STOP,
    **fields: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The answer to the same request, whole and as a stream of single letters."""
    whole = post(http, PATH, CHAT | fields)
    await engine.answer(await engine.hear_question(), text, finish)
    streamed = post(http, PATH, CHAT | fields | {"stream": True, "stream_options": {"include_usage": True}})
    question = await engine.hear_question()
    for letter in text[:-1]:
        await engine.answer(question, letter)
    await engine.answer(question, text[-1], finish)
    answer = await whole
    assert answer.status_code == 200, answer.text
    return answer.json(), events(await streamed)


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's deltas make."""
    message: dict[str, Any] = {"calls": []}
    for delta in (chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]):
        for name in ("content", "reasoning_content"):
            if name in delta:
                message[name] = message.get(name, "") + (delta[name] or "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert (call["type"], call["index"]) == ("function", len(message["calls"]))
                message["calls"].append([call["function"]["name"], ""])
            message["calls"][call["index"]][1] += call["function"]["arguments"]
    return message


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """The same of an answer that was not streamed."""
    message = answer["choices"][0]["message"]
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]
    texts = {name: message[name] for name in ("content", "reasoning_content") if message.get(name)}
    return {"content": ""} | texts | {"calls": calls}


async def test_calls_are_in_the_answer_and_in_the_deltas(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer, chunks = await answered(http, engine, f"Let me see. {CALLS}", tools=TOOLS)
    assert said(answer) == joined(chunks)
    assert said(answer) == {"content": "Let me see.", "calls": [["weather", '{"city": "Bern"}'], ["clock", "{}"]]}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-3:-1]] == [None, "tool_calls"]
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert all(call["id"].startswith("call_") and call["type"] == "function" for call in calls)
    assert len({call["id"] for call in calls}) == 2
    assert all("index" not in call for call in calls)


async def test_no_chunk_is_empty_but_the_last_one(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    _, chunks = await answered(http, engine, CALL, tools=TOOLS)
    first, *others, last, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}, "it only calls"
    assert all(any(chunk["choices"][0]["delta"].values()) for chunk in others)
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert all(chunk["usage"] is None for chunk in (first, *others, last))
    assert usage["usage"]["completion_tokens"] == len(CALL)


async def test_a_message_that_only_calls_has_no_content(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer, chunks = await answered(http, engine, CALL, tools=TOOLS)
    assert answer["choices"][0]["message"]["content"] is None
    assert chunks[0]["choices"][0]["delta"]["content"] is None
    _, chunks = await answered(http, engine, f"Let me see. {CALLS}", tools=TOOLS)
    assert chunks[0]["choices"][0]["delta"]["content"] == ""
    assert answer["choices"][0]["message"]["refusal"] is None
    assert answer["choices"][0]["logprobs"] is None


async def test_a_call_that_is_cut_off_says_so(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    cut = CALL[: CALL.index("Bern") + 2]
    answer, chunks = await answered(http, engine, cut, FinishReason.LENGTH, tools=TOOLS)
    assert said(answer) == joined(chunks) == {"content": "", "calls": [["weather", '{"city": "Be']]}
    assert answer["choices"][0]["finish_reason"] == chunks[-2]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("length", [3, 11, 14, 22, 30, 34, 50])
async def test_no_beginning_of_a_call_that_must_come_is_content(
    http: httpx.AsyncClient, engine: FakeEngine, length: int
) -> None:
    answer, chunks = await answered(
        http, engine, CALL[:length], FinishReason.LENGTH, tools=TOOLS, tool_choice="required"
    )
    assert said(answer) == joined(chunks)
    assert said(answer)["content"] == ""
    assert CALL[:length].endswith("".join(arguments for _, arguments in said(answer)["calls"]))
    assert answer["choices"][0]["finish_reason"] == chunks[-2]["choices"][0]["finish_reason"] == "length"


async def test_what_cannot_be_enforced_names_the_field_that_asked_for_it(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    for path, field, fields in (
        (PATH, "response_format", {"response_format": form}),
        (PATH, "guided_regex", {"guided_regex": "("}),
        (PATH, "tools", {"tools": TOOLS, "tool_choice": "required"}),
    ):
        answer = post(http, path, CHAT | fields)
        question = await engine.hear_question()
        refusal = Refusal(code="unsupported_constraint", message="The form cannot be enforced.")
        await engine.answer(question, "", FinishReason.ERROR, refusal=refusal)
        assert ((await answer).status_code, (await answer).json()["error"]["param"]) == (400, field)


async def test_a_function_that_is_not_strict_is_no_reason_to_refuse(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"n": {"multipleOf": -1}}}}
    answer = post(http, PATH, CHAT | {"tools": [{"function": function}], "tool_choice": "required"})
    question = await engine.hear_question()
    assert question.constraint is not None
    await engine.answer(question, CALL, FinishReason.STOP)
    assert (await answer).status_code == 200
    refused = await http.post(PATH, json=CHAT | {"tools": [{"function": function | {"strict": True}}]})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "tools")
    assert "the parameters of f cannot be enforced: `multipleOf` must be greater than 0" in error["message"]


async def test_without_tools_calls_are_text(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer, chunks = await answered(http, engine, CALL, **fields)
        assert said(answer) == joined(chunks) == {"content": CALL, "calls": []}
        assert answer["choices"][0]["finish_reason"] == "stop"


async def test_stop_strings_are_found_in_content_and_nowhere_else(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    text = f"<think>Bern?</think>So: {CALL}"
    answer, chunks = await answered(http, engine, text, tools=TOOLS, stop=["Bern", "name", "<tool"])
    assert said(answer) == joined(chunks)
    assert said(answer)["calls"] == [["weather", '{"city": "Bern"}']]
    whole = post(http, PATH, CHAT | {"tools": TOOLS, "stop": "So"})
    await engine.answer(await engine.hear_question(), text, FinishReason.LENGTH)
    choice = (await whole).json()["choices"][0]
    assert (choice["message"].get("tool_calls"), choice["finish_reason"], choice["stop_reason"]) == (None, "stop", "So")


async def test_one_call_alone_ends_the_answer(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    waiting = post(http, PATH, CHAT | {"tools": TOOLS, "parallel_tool_calls": False})
    question = await engine.hear_question()
    await engine.answer(question, f"{CALLS} and so on")
    answer = (await waiting).json()
    assert said(answer)["calls"] == [["weather", '{"city": "Bern"}']]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert await engine.hear() == Abort([question.id])


async def test_calls_are_enforced_where_they_must_be(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    async def constraint(**fields: Any) -> Any:
        waiting = post(http, PATH, CHAT | fields)
        question = await engine.hear_question()
        await engine.answer(question, "x", FinishReason.STOP)
        assert (await waiting).status_code == 200
        return question.constraint

    assert await constraint(tools=TOOLS) is None
    required = await constraint(tools=TOOLS, tool_choice="required")
    assert required.kind is Kind.GRAMMAR and '"weather"' in required.text and '"clock"' in required.text
    named = await constraint(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "clock"}})
    assert '"weather"' not in named.text and '"clock"' in named.text
    strict = {"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}
    held = await constraint(tools=[strict])
    assert '"city"' in held.text
    form = {"type": "json_object"}
    assert (await constraint(response_format=form)).lead.startswith("%llguidance")


async def test_reasoning_is_apart_from_content_and_counted(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    text = "<think>One or two?</think> Two."
    answer, chunks = await answered(http, engine, text)
    assert said(answer) == joined(chunks)
    assert said(answer) == {"content": "Two.", "reasoning_content": "One or two?", "calls": []}
    reasoned = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert len("One or two?") <= reasoned <= len("<think>One or two?</think>")
    assert chunks[-1]["usage"]["completion_tokens_details"] == answer["usage"]["completion_tokens_details"]


async def test_reasoning_may_be_left_out(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    text = "<think>One or two?</think> Two."
    answer, chunks = await answered(http, engine, text, include_reasoning=False)
    assert said(answer) == joined(chunks) == {"content": "Two.", "calls": []}
    assert len(chunks) < len("Two.") + 4, "nothing is sent of what nobody wants"


async def test_tools_are_described_in_words_where_the_template_leaves_them_out(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    async def prompt(**fields: Any) -> str:
        tokens = (await http.post("/tokenize", json=CHAT | fields)).json()["tokens"]
        return str((await http.post("/detokenize", json={"model": "tiny", "tokens": tokens})).json()["prompt"])

    assert "Of a city." in await prompt(tools=TOOLS)
    assert "tool_call" not in await prompt()


async def test_a_model_whose_calls_are_not_known_is_not_made_to_call(engine: FakeEngine) -> None:
    async with server(engine, tool_call_parser="none") as http:
        answer = await http.post(PATH, json=CHAT | {"tools": TOOLS, "tool_choice": "required"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")
        text, _ = await answered(http, engine, CALL, tools=TOOLS)
        assert said(text) == {"content": CALL, "calls": []}


async def test_the_template_says_whether_an_answer_begins_within_reasoning(engine: FakeEngine) -> None:
    async with server(engine, chat_template=str(FIXTURES / "deepseek_v31.jinja")) as http:
        text = "Hm.</think>Two."
        answer, _ = await answered(http, engine, text, enable_thinking=True)
        assert said(answer)["reasoning_content"] == "Hm."
        answer, _ = await answered(http, engine, "Two.", reasoning_effort="none")
        assert said(answer) == {"content": "Two.", "calls": []}


async def test_a_form_comes_at_once_where_the_prompt_has_ended_the_reasoning(engine: FakeEngine) -> None:
    """Else it could begin to think again, and not come to an end."""
    async with server(engine, chat_template=str(FIXTURES / "deepseek_v31.jinja")) as http:
        for fields, thinks in (({"reasoning_effort": "none"}, False), ({"enable_thinking": True}, True)):
            body = CHAT | {"response_format": {"type": "json_object"}} | fields
            waiting = post(http, PATH, body)
            question = await engine.hear_question()
            await engine.answer(question, "{}", FinishReason.STOP)
            assert (await waiting).status_code == 200
            assert question.constraint is not None and ("thought" in question.constraint.lead) is thinks


async def test_a_budget_that_cannot_be_kept_is_refused(engine: FakeEngine) -> None:
    """The tiny tokenizer has no token of its own for the end of reasoning."""
    async with server(engine, reasoning_parser="think") as http:
        answer = await http.post(PATH, json=CHAT | {"thinking_token_budget": 5})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "thinking_token_budget")


async def test_the_budget_of_a_message_is_that_of_its_chat(engine: FakeEngine) -> None:
    body = CHAT | {"max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 5}}
    async with server(engine, tool_call_parser="harmony") as http:
        waiting = post(http, "/v1/messages", body)
        question = await engine.hear_question()
        await engine.answer(question, "x", FinishReason.STOP)
        assert (await waiting).status_code == 200
        assert question.constraint is not None and "[max_tokens=5]" in question.constraint.text


async def test_an_excess_of_max_tokens_is_cut_where_the_server_says_so(engine: FakeEngine) -> None:
    async with server(engine, excess_max_tokens="cut") as http:
        waiting = post(http, PATH, CHAT | {"max_tokens": 100_000})
        question = await engine.hear_question()
        assert question.params.max_tokens == 2048 - len(question.prompt)
        await engine.answer(question, "x", FinishReason.STOP)
        assert (await waiting).status_code == 200


async def test_an_overflow_holds_the_words_that_clients_look_for(http: httpx.AsyncClient) -> None:
    for fields in ({"max_tokens": 4000}, {"messages": [{"role": "user", "content": "x" * 2100}]}):
        error = (await http.post(PATH, json=CHAT | fields)).json()["error"]
        assert "prompt is too long" in error["message"]
        assert "This model's maximum context length is 2048 tokens" in error["message"]
        assert error["code"] == "context_length_exceeded"


async def test_one_model_has_a_path(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()["data"][0]
    assert (await http.get(f"/v1/models/{listed['id']}")).json() == listed
    missing = await http.get("/v1/models/a%2Fb")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert "`a/b`" in missing.json()["error"]["message"]


async def test_tools_that_make_prompts_learn_of_the_tokenizer(http: httpx.AsyncClient) -> None:
    info = (await http.get("/tokenizer_info")).json()
    assert info["eos_token"] and info["model_max_length"] == 2048
    assert "messages" in info["chat_template"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/models", "did you mean /v1/models?"),
    ],
)
async def test_a_wrong_path_says_what_to_do(http: httpx.AsyncClient, path: str, words: str) -> None:
    answer = await http.post(path, json={})
    assert answer.status_code == 404
    assert words in answer.json()["error"]["message"]
