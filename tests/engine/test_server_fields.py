"""What fields of a request do to its prompt, to what the engine is told, and to the text of the answer."""

from typing import Any

import httpx
import pytest

from headwater.openai.request import SamplingDefaults
from headwater_engine.core.messages import FinishReason, Output, Outputs, TokenLogprobs
from tests.engine.fake_engine import FakeEngine, sorted_alphabet
from tests.engine.front import CHAT, TEXT, events, post, serving, until

END_OF_TURN = 258


def ids(text: str) -> list[int]:
    return [sorted_alphabet().index(character) for character in text]


async def answered(http: httpx.AsyncClient, engine: FakeEngine, tokens: list[int], **fields: Any) -> dict[str, Any]:
    """The only choice, where the engine says `tokens` and stops."""
    answer = post(http, "/v1/completions", {**TEXT, **fields})
    question = await engine.hear_question()
    await engine.say(Outputs([Output(id=question.id, tokens=tokens, finish_reason=FinishReason.STOP)]))
    (choice,) = (await answer).json()["choices"]
    return dict(choice)


async def test_what_ends_the_answer_is_part_of_it_where_that_is_asked_for(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    fields: dict[str, Any] = {"include_stop_str_in_output": True, "stop": "b"}
    choice = await answered(http, engine, ids("abc"), **fields)
    assert (choice["text"], choice["stop_reason"]) == ("ab", "b")
    choice = await answered(http, engine, ids("xy"), include_stop_str_in_output=True, stop_token_ids=ids("y"))
    assert choice["text"] == "xy"
    assert (await answered(http, engine, ids("xy"), stop_token_ids=ids("y")))["text"] == "x"


async def test_special_tokens_are_in_the_text_where_that_is_asked_for(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    tokens = [*ids("a"), 257, *ids("b")]
    assert (await answered(http, engine, tokens))["text"] == "ab"
    shown = (await answered(http, engine, tokens, skip_special_tokens=False))["text"]
    assert shown == "a<|im_start|>b"
    fields = {"skip_special_tokens": False, "include_stop_str_in_output": True}
    assert (await answered(http, engine, [*ids("a"), END_OF_TURN], **fields))["text"] == "a<|im_end|>"


async def test_a_special_token_that_is_in_the_text_moves_what_comes_behind_it(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    tokens = [*ids("a"), 257, *ids("b")]
    for skipped, offsets in ((True, [0, 1, 1]), (False, [0, 1, 1 + len("<|im_start|>")])):
        answer = post(http, "/v1/completions", {**TEXT, "logprobs": 0, "skip_special_tokens": skipped})
        question = await engine.hear_question()
        scored = [TokenLogprobs(token, -0.5, 1, []) for token in tokens]
        finished = Output(id=question.id, tokens=tokens, finish_reason=FinishReason.LENGTH, logprobs=scored)
        await engine.say(Outputs([finished]))
        (choice,) = (await answer).json()["choices"]
        assert choice["logprobs"]["text_offset"] == offsets


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"truncate_prompt_tokens": 3}, "789"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "012"),
        ({"truncate_prompt_tokens": 20}, "0123456789"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 60}, "6789"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 1}, "0123456789"),
    ],
)
async def test_a_prompt_is_cut_to_the_tokens_that_it_may_have(
    http: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], prompt: str
) -> None:
    answer = post(http, "/v1/completions", {**TEXT, "prompt": "0123456789", **fields})
    question = await engine.hear_question()
    assert question.prompt == ids(prompt)
    await engine.answer(question, "x", FinishReason.STOP)
    assert (await answer).status_code == 200


async def test_a_chat_is_cut_too(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    whole = (await http.post("/tokenize", json=CHAT)).json()["tokens"]
    answer = post(http, "/v1/chat/completions", {**CHAT, "truncate_prompt_tokens": 4})
    question = await engine.hear_question()
    assert question.prompt == whole[-4:]
    await engine.answer(question, "x", FinishReason.STOP)
    assert (await answer).status_code == 200


async def test_each_chunk_has_the_usage_so_far_where_that_is_asked_for(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path, body in (("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)):
        answer = post(http, path, {**body, **options})
        question = await engine.hear_question()
        await engine.answer(question, "abc", cached_tokens=1)
        await engine.answer(question, "d", FinishReason.STOP)
        usages = [chunk["usage"] for chunk in events(await answer)]
        assert sorted({usage["completion_tokens"] for usage in usages}) == [3, 4]
        assert {usage["prompt_tokens"] for usage in usages} == {len(question.prompt)}
        assert usages[0]["prompt_tokens_details"] == {"cached_tokens": 1}


async def test_allowed_tokens_reach_the_engine_or_are_refused_by_name(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = post(http, "/v1/completions", {**TEXT, "allowed_token_ids": [5, 7]})
    question = await engine.hear_question()
    assert question.params.allowed_token_ids == (5, 7)
    await engine.answer(question, "x", FinishReason.STOP)
    assert (await answer).status_code == 200
    for fields in ({"allowed_token_ids": [5, 512]}, {"allowed_token_ids": [END_OF_TURN], "min_tokens": 2}):
        refused = await http.post("/v1/completions", json={**TEXT, **fields})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "allowed_token_ids")


async def test_an_echo_alone_has_the_prompts_logprobs_and_no_answer(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """As lm-evaluation-harness asks."""
    answer = post(http, "/v1/completions", {**TEXT, "echo": True, "logprobs": 1, "max_tokens": 0})
    question = await engine.hear_question()
    assert (question.params.max_tokens, question.params.prompt_logprobs) == (1, 1)
    scored = TokenLogprobs(question.prompt[1], -0.5, 1, [(question.prompt[1], -0.5)])
    unseen = [TokenLogprobs(END_OF_TURN, -1.0, 1, [])]
    await engine.say(
        Outputs(
            [
                Output(
                    id=question.id,
                    tokens=[END_OF_TURN],
                    finish_reason=FinishReason.STOP,
                    prompt_logprobs=[None, scored],
                    logprobs=unseen,
                )
            ]
        )
    )
    body = (await answer).json()
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5]
    assert body["usage"]["completion_tokens"] == 0
    assert (await http.post("/v1/completions", json={**TEXT, "max_tokens": 0})).json()["error"]["param"] == "max_tokens"


async def test_a_text_without_a_limit_has_what_the_context_leaves_at_most(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for length, limit in ((10, 16), (60, 4)):
        answer = post(http, "/v1/completions", {"prompt": "x" * length})
        question = await engine.hear_question()
        assert question.params.max_tokens == limit
        await engine.answer(question, "x", FinishReason.STOP)
        assert (await answer).json()["model"] == "tiny"


async def test_ids_that_only_the_model_has_are_taken(engine: FakeEngine) -> None:
    """Qwen3's rows end behind its tokenizer's."""
    async with serving(engine) as http:
        await engine.be_ready(vocab_size=520)
        await until(http, "/ready", 200)
        answer = post(http, "/v1/completions", {**TEXT, "prompt": [519], "logit_bias": {"519": 1}})
        question = await engine.hear_question()
        assert (question.prompt, question.params.logit_bias) == ([519], {519: 1.0})
        await engine.answer(question, "x", FinishReason.STOP)
        assert (await answer).status_code == 200
        for fields in ({"prompt": [3, 520]}, {"logit_bias": {"520": 1}}, {"stop_token_ids": [520]}):
            error = (await http.post("/v1/completions", json={**TEXT, **fields})).json()["error"]
            assert error["param"] == next(iter(fields))
            assert "520" in error["message"]


async def test_ids_that_only_the_tokenizer_has_are_refused_before_the_engine_hears(engine: FakeEngine) -> None:
    """Gemma 3's `<image_soft_token>` is behind its rows."""
    async with serving(engine) as http:
        await engine.be_ready(vocab_size=256)
        await until(http, "/ready", 200)
        for path, body in (("/v1/completions", {**TEXT, "prompt": "a<|im_start|>"}), ("/v1/chat/completions", CHAT)):
            refused = await http.post(path, json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, "messages" if "messages" in body else "prompt")
            assert "257" in error["message"] or "258" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/chat/completions", CHAT, 12),
        ("/v1/completions", TEXT, 12),
        ("/v1/completions", {**TEXT, "prompt": "x" * 60}, 4),
        ("/v1/completions", {**TEXT, "max_tokens": 30}, 30),
    ],
)
async def test_the_operators_length_holds_where_a_request_names_none(
    engine: FakeEngine, path: str, body: dict[str, Any], tokens: int
) -> None:
    async with serving(engine, override_generation_config=SamplingDefaults(max_new_tokens=12)) as http:
        await engine.be_ready()
        await until(http, "/ready", 200)
        answer = post(http, path, body)
        question = await engine.hear_question()
        assert question.params.max_tokens == tokens
        await engine.answer(question, "x", FinishReason.STOP)
        assert (await answer).status_code == 200
