"""Requests: unknown fields are let through, wrong ones get a 400 that names the field and says what is allowed."""

import json
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import pytest

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.completions import CompletionRequest
from headwater.openai.errors import BadRequestError
from headwater.openai.request import RequestModel
from headwater.openai.tokenize import DetokenizeRequest, TokenizeRequest

USER = {"role": "user", "content": "hello"}


def chat(**fields) -> ChatCompletionRequest:
    return ChatCompletionRequest.parse(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion(**fields) -> CompletionRequest:
    return CompletionRequest.parse(json.dumps({"model": "m", "prompt": "hello", **fields}).encode())


SAMPLING = {
    "n": 128,
    "max_tokens": 5,
    "min_tokens": 5,
    "temperature": 0,
    "top_p": 1,
    "top_k": -1,
    "min_p": 0.5,
    "seed": -1,
    "presence_penalty": -2,
    "frequency_penalty": 2,
    "repetition_penalty": 1.1,
    "stop_token_ids": [0, 7],
    "ignore_eos": True,
    "priority": -3,
    "cache_salt": "tenant-a",
    "user": "u",
    "stream": True,
}


@pytest.mark.parametrize("parse", [chat, completion])
def test_all_sampling_fields_are_read(parse):
    request = parse(**SAMPLING, logit_bias={"5": -100, "7": 0.5}, stream_options={"include_usage": True})
    for name, value in SAMPLING.items():
        assert getattr(request, name) == value
    assert request.logit_bias == {5: -100.0, 7: 0.5}
    assert request.include_usage


def whole_numbers(model: type[RequestModel]) -> list[str]:
    """Fields that are an integer, or none."""

    def is_whole(annotation: object) -> bool:
        if get_origin(annotation) in (Union, UnionType, Annotated):
            return any(map(is_whole, get_args(annotation)))
        return annotation is int

    return [name for name, field in model.model_fields.items() if is_whole(field.annotation)]


@pytest.mark.parametrize(
    ("parse", "field"),
    [(chat, name) for name in whole_numbers(ChatCompletionRequest)]
    + [(completion, name) for name in whole_numbers(CompletionRequest)],
)
@pytest.mark.parametrize("value", [10**30, -(10**30), 1e300])
def test_no_number_is_larger_than_a_message_to_the_engine_can_hold(parse, field, value):
    with pytest.raises(BadRequestError) as refused:
        parse(**{field: value})
    assert refused.value.param == field


@pytest.mark.parametrize("value", [1e-40, 1e-300, 1e300, 0])
def test_no_repetition_penalty_takes_logits_out_of_float32(value):
    with pytest.raises(BadRequestError) as refused:
        completion(repetition_penalty=value)
    assert refused.value.param == "repetition_penalty"


def test_a_token_id_of_many_digits_is_named_as_what_it_is():
    with pytest.raises(BadRequestError, match="keys must be token ids"):
        completion(logit_bias={"9" * 5000: 1})


@pytest.mark.parametrize("parse", [chat, completion])
def test_null_is_not_given(parse):
    given = parse(**dict.fromkeys([*SAMPLING, "stop", "logit_bias", "response_format"]))
    assert given == parse()
    assert "temperature" not in given.model_fields_set


def test_unknown_fields_are_kept():
    request = chat(messages=[{**USER, "weather": "fine"}], mirostat={"tau": 5})
    assert request.model_extra == {"mirostat": {"tau": 5}}
    assert request.messages[0].model_dump(exclude_unset=True) == {**USER, "weather": "fine"}


def test_tools_and_formats_pass_as_raw_data():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    request = chat(tools=tools, tool_choice="auto", response_format={"type": "json_object"})
    assert (request.tools, request.tool_choice.mode) == (tools, "auto")
    assert request.response_format == {"type": "json_object"}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": 2.1}, "temperature", "must be less than or equal to 2, found 2.1"),
        ({"temperature": "1"}, "temperature", 'must be a number, found "1"'),
        ({"temperature": True}, "temperature", "found true"),
        ({"temperature": float("nan")}, "temperature", "a number that is finite"),
        ({"top_p": 0}, "top_p", "must be greater than 0, found 0"),
        ({"top_k": -2}, "top_k", "must be greater than or equal to -1"),
        ({"min_p": 1.5}, "min_p", "must be less than or equal to 1"),
        ({"n": 0}, "n", "must be greater than or equal to 1"),
        ({"n": 129}, "n", "must be less than or equal to 128"),
        ({"max_tokens": -1}, "max_tokens", "must be greater than or equal to"),
        ({"max_tokens": 1.5}, "max_tokens", "a whole number"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "must be at most `max_tokens`, which is 8, found 9"),
        ({"seed": 2**63}, "seed", "less than or equal"),
        ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "greater than or equal to -2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "0.01"),
        ({"logit_bias": [1]}, "logit_bias", "must be an object of token ids and biases, found [1]"),
        ({"logit_bias": {"a": 1}}, "logit_bias", 'its keys must be token ids as strings, found "a"'),
        ({"logit_bias": {"²": 1}}, "logit_bias", "its keys must be token ids"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100, found 101 for token 1"),
        ({"logit_bias": {str(n): 1 for n in range(4097)}}, "logit_bias", "must have at most 4096 tokens, found 4097"),
        ({"stop_token_ids": [7] * 4097}, "stop_token_ids", "at most 4096"),
        ({"stop": ""}, "stop[0]", "at least 1 character"),
        ({"stop": 1}, "stop", "must be a list"),
        ({"stop": ["x"] * 17}, "stop", "at most 16 elements"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "greater than or equal to 0"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"stream_options": {}}, "stream_options", "only allowed where `stream` is true"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
        ({"priority": "high"}, "priority", "a whole number"),
        ({"cache_salt": ""}, "cache_salt", "at least 1 character"),
        ({"model": ""}, "model", "at least 1 character"),
    ],
)
@pytest.mark.parametrize("parse", [chat, completion])
def test_a_wrong_field_is_named(parse, fields, param, message):
    with pytest.raises(BadRequestError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    error = caught.value.body()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert message in error["message"]
    assert f"`{param}`" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": None}, "messages", "is required"),
        ({"messages": []}, "messages", "at least 1 element"),
        ({"messages": "hi"}, "messages", 'must be a list, found "hi"'),
        ({"messages": [USER, {"role": "robot", "content": ""}]}, "messages[1].role", "must be 'system', 'developer'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is required in a message of role user"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "a string or a list of text parts, found 5",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "part 0 must be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content",
            "part 0 is of type 'image_url'; only text is read",
        ),
        ({"logprobs": 5}, "logprobs", "must be true or false"),
        ({"top_logprobs": 2}, "top_logprobs", "only allowed where `logprobs` is true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"max_completion_tokens": 2, "min_tokens": 3}, "max_completion_tokens", "at least `min_tokens`, which is 3"),
        ({"tools": {}}, "tools", "must be a list of functions"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}] * 1025},
            "tools",
            "must be at most 1024 functions, found 1025",
        ),
        ({"tools": [{"function": {"name": "f"}}] * 2}, "tools", 'must have names of their own, found "f" twice'),
        ({"tools": [{"function": {"name": 5}}]}, "tools[0].function.name", "must be text, found 5"),
        ({"tools": [{"function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict", "true or false"),
        ({"tools": [{"function": {"name": "f", "description": 5}}]}, "tools[0].function.description", "must be text"),
        (
            {"tools": [{"function": {"name": "f", "parameters": 5}}]},
            "tools[0].function.parameters",
            "must be an object",
        ),
        ({"tools": [{"type": "code", "function": {"name": "f"}}]}, "tools[0].type", "must be 'function'"),
        ({"metadata": "x"}, "metadata", "must be an object"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt", "cannot be true"),
    ],
)
def test_a_wrong_chat_field_is_named(fields, param, message):
    with pytest.raises(BadRequestError) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": None}, "prompt", "is required"),
        ({"prompt": []}, "prompt", "must not be an empty list"),
        ({"prompt": [[1], []]}, "prompt", "must not hold an empty list"),
        ({"prompt": [1, "a"]}, "prompt", 'a list of lists of token ids, found [1, "a"]'),
        ({"prompt": [1, True]}, "prompt", "a list of token ids"),
        ({"prompt": [2**31]}, "prompt", "a list of token ids"),
        ({"prompt": {}}, "prompt", "must be a string"),
        ({"best_of": 2}, "best_of", "must equal `n`, which is 1, found 2"),
        ({"suffix": "end"}, "suffix", "is not supported"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
    ],
)
def test_a_wrong_completion_field_is_named(fields, param, message):
    with pytest.raises(BadRequestError) as caught:
        completion(**fields)
    assert caught.value.param == param
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": "x", "tool_choice": "required"}, '`tools`: must be a list of functions, found "x".'),
        ({"stream": "x", "stream_options": {}}, '`stream`: must be true or false, found "x".'),
        ({"logprobs": 5, "top_logprobs": 2}, "`logprobs`: must be true or false, found 5."),
    ],
)
def test_a_field_is_not_blamed_for_another_one_that_is_wrong(fields, message):
    with pytest.raises(BadRequestError) as caught:
        chat(**fields)
    assert caught.value.message == message


def test_a_body_that_is_too_deep_is_said_to_be_that():
    deep = b"[" * 300 + b"]" * 300
    with pytest.raises(BadRequestError, match="The body has more than 200 levels of lists and objects"):
        ChatCompletionRequest.parse(b'{"messages":[],"x":' + deep + b"}")


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "m",}', b"\xff", b'{"model": "\xff"}'])
def test_what_is_no_json_is_refused(body):
    with pytest.raises(BadRequestError, match="not valid JSON" if body else "The body is empty") as caught:
        ChatCompletionRequest.parse(body)
    assert caught.value.code == "invalid_json"


def test_what_is_no_object_is_refused():
    with pytest.raises(BadRequestError, match="The body: must be an object"):
        ChatCompletionRequest.parse(b"[1]")


def test_content_is_a_text_or_parts_of_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    calls = [{"function": {"name": "f"}}]
    messages = [USER, {"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": calls}]
    assert [message.content for message in chat(messages=messages).messages] == ["hello", parts, None]


def test_the_newer_name_of_the_output_limit_wins():
    assert chat().output_limit is None
    assert chat(max_tokens=5).output_limit == 5
    assert chat(max_tokens=5, max_completion_tokens=7).output_limit == 7


def test_continuing_a_message_adds_no_other():
    assert chat().add_generation_prompt
    assert not chat(continue_final_message=True).add_generation_prompt
    assert not chat(add_generation_prompt=False).add_generation_prompt


def test_one_stop_string_is_a_list_of_one():
    assert (chat(stop="a").stop, chat(stop=["a", "b"]).stop, chat().stop) == (["a"], ["a", "b"], [])


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", ""], ["a", ""]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
    ],
)
def test_every_form_of_a_prompt_is_a_list_of_prompts(prompt, prompts):
    assert completion(prompt=prompt).prompts == prompts


def test_tokenize_takes_a_prompt_or_messages():
    prompt = TokenizeRequest.parse(b'{"prompt": "a"}')
    assert (prompt.prompt, prompt.add_special_tokens) == ("a", True)
    messages = TokenizeRequest.parse(json.dumps({"messages": [USER], "add_special_tokens": None}).encode())
    assert (messages.messages[0].content, messages.add_special_tokens) == ("hello", False)
    for wrong in (b"{}", json.dumps({"prompt": "a", "messages": [USER]}).encode()):
        with pytest.raises(BadRequestError, match="give either `prompt` or `messages`"):
            TokenizeRequest.parse(wrong)


def test_detokenize_takes_token_ids():
    assert DetokenizeRequest.parse(b'{"tokens": [1, 2]}').tokens == [1, 2]
    with pytest.raises(BadRequestError, match=r"`tokens\[1\]`"):
        DetokenizeRequest.parse(b'{"tokens": [1, -2]}')


@pytest.mark.parametrize("parse", [chat, completion])
def test_a_whole_number_may_be_written_with_a_point(parse):
    request = parse(max_tokens=5.0, top_k=3.0, seed=7.0, stop_token_ids=[2.0])
    assert (request.max_tokens, request.top_k, request.seed, request.stop_token_ids) == (5, 3, 7, [2])
    with pytest.raises(BadRequestError, match="`top_k`"):
        parse(top_k=float("inf"))


def test_a_number_that_is_none_matters_only_where_it_is_used():
    assert chat(weather=float("nan"), chat_template_kwargs={"a": float("inf")}).model_extra is not None
    with pytest.raises(BadRequestError, match="`repetition_penalty`"):
        chat(repetition_penalty=float("inf"))


@pytest.mark.parametrize("parse", [chat, completion])
def test_the_model_need_not_be_named(parse):
    assert parse(model=None).model is None
