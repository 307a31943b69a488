"""Answers and errors have the shapes of the OpenAI API, as its own client and recorded servers have them."""

import json
from pathlib import Path

import msgspec
import openai.types
import openai.types.chat
import pytest

from headwater.openai import chat, completions, errors, models, tokenize
from headwater.openai.stream import DONE, error_event, event
from headwater.openai.usage import Usage

FIXTURES = Path(__file__).parent.parent / "fixtures"
USAGE = Usage.of(prompt=33, completion=12, cached=16)


def encoded(answer: msgspec.Struct) -> dict:
    return json.loads(msgspec.json.encode(answer))


def test_the_cached_tokens_are_always_told():
    assert encoded(Usage.of(prompt=3, completion=4, cached=0)) == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize(
    ("recorded", "answer"),
    [
        ("vllm-0.32.0/chat.json", chat.ChatCompletion),
        ("vllm-0.32.0/completion-logprobs.json", completions.Completion),
        ("vllm-0.32.0/models.json", models.ModelList),
    ],
)
def test_our_types_read_what_vllm_answers_and_write_a_part_of_it(recorded, answer):
    """What we write of a recorded answer is in it, field by field."""
    theirs = json.loads((FIXTURES / recorded).read_text())

    def check(ours: object, theirs: object) -> None:
        match ours, theirs:
            case dict(), dict():
                for name, value in ours.items():
                    check(value, theirs[name])
            case list(), list():
                for one, other in zip(ours, theirs, strict=True):
                    check(one, other)
            case _:
                assert ours == theirs

    check(encoded(msgspec.convert(theirs, answer)), theirs)


def test_streamed_chunks_of_vllm_are_read():
    lines = (FIXTURES / "vllm-0.32.0/chat-stream.txt").read_text().split("\n\n")
    chunks = [msgspec.json.decode(line.removeprefix("data: "), type=chat.ChatCompletionChunk) for line in lines[:-2]]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]).startswith("Hello! I'm")
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], Usage.of(prompt=33, completion=12, cached=0))


def chunk(**delta) -> chat.ChatCompletionChunk:
    choice = chat.ChunkChoice(index=0, delta=chat.Delta(**delta), finish_reason=None)
    return chat.ChatCompletionChunk(id="chatcmpl-1", created=1, model="m", choices=[choice])


def test_a_chunk_is_as_short_as_it_can_be():
    assert event(chunk(content="Hi")) == (
        b'data: {"object":"chat.completion.chunk","id":"chatcmpl-1","created":1,"model":"m",'
        b'"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
    )
    assert encoded(chunk(role="assistant", content=""))["choices"][0]["delta"] == {"role": "assistant", "content": ""}


LOGPROBS = chat.ChoiceLogprobs([chat.TokenLogprob("é", -0.5, [195, 169], [chat.TopLogprob("é", -0.5, [195, 169])])])


@pytest.mark.parametrize(
    ("answer", "theirs"),
    [
        (
            chat.ChatCompletion(
                id="chatcmpl-1",
                created=1,
                model="m",
                choices=[
                    chat.Choice(
                        index=0,
                        message=chat.AnswerMessage(role="assistant", content="é", refusal=None),
                        finish_reason="stop",
                        logprobs=LOGPROBS,
                        stop_reason="\n",
                    )
                ],
                usage=USAGE,
            ),
            openai.types.chat.ChatCompletion,
        ),
        (chunk(role="assistant", content=""), openai.types.chat.ChatCompletionChunk),
        (
            chat.ChatCompletionChunk(id="chatcmpl-1", created=1, model="m", choices=[], usage=USAGE),
            openai.types.chat.ChatCompletionChunk,
        ),
        (
            completions.Completion(
                id="cmpl-1",
                created=1,
                model="m",
                choices=[
                    completions.CompletionChoice(
                        index=0,
                        text="ab",
                        finish_reason="length",
                        logprobs=completions.CompletionLogprobs(
                            text_offset=[0, 1],
                            token_logprobs=[-2.0, -1.0],
                            tokens=["a", "b"],
                            top_logprobs=[{"a": -2.0}, {"b": -1.0}],
                        ),
                    )
                ],
                usage=USAGE,
            ),
            openai.types.Completion,
        ),
        (models.ModelCard(id="m", created=1, max_model_len=8), openai.types.Model),
    ],
)
def test_the_openai_client_finds_every_field_that_it_requires(answer, theirs):
    sent = encoded(answer)
    assert theirs.model_validate(sent).model_dump(exclude_unset=True) == sent


def test_nullable_fields_that_the_schema_requires_are_there():
    message = chat.AnswerMessage(role="assistant", content=None, refusal=None)
    choice = encoded(chat.Choice(index=0, message=message, finish_reason="stop", logprobs=None))
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": None},
        "finish_reason": "stop",
        "logprobs": None,
    }
    assert encoded(chat.ChoiceLogprobs([])) == {"content": [], "refusal": None}
    text = completions.CompletionChoice(index=0, text="", finish_reason=None, logprobs=None)
    assert encoded(text) == {"index": 0, "text": "", "finish_reason": None, "logprobs": None}


def test_tokenize_answers_as_vllm():
    assert encoded(tokenize.TokenizeAnswer(count=2, max_model_len=8, tokens=[1, 2])) == {
        "count": 2,
        "max_model_len": 8,
        "tokens": [1, 2],
        "token_strs": None,
    }
    assert encoded(tokenize.DetokenizeAnswer("a")) == {"prompt": "a"}


def test_an_error_has_the_four_fields():
    error = errors.ModelNotFoundError("nope", ["small", "m"])
    assert error.status == 404
    assert error.body() == {
        "error": {
            "message": "The model `nope` does not exist. Served here: m, small.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def all_errors(root: type[errors.APIError] = errors.APIError) -> list[type[errors.APIError]]:
    return [kind for child in root.__subclasses__() for kind in (child, *all_errors(child))]


def test_the_tree_at_the_top_of_the_module_is_the_tree():
    drawn = [
        line.split("── ")[1].split(" ")[0].strip() for line in (errors.__doc__ or "").splitlines() if "── " in line
    ]
    assert drawn == [kind.__name__ for kind in all_errors()]


@pytest.mark.parametrize("kind", [kind for kind in all_errors() if kind is not errors.ModelNotFoundError])
def test_every_error_says_whose_fault_it_is(kind):
    error = kind("Why.", retry_after=2.0)
    theirs = error.status < 500
    assert (error.type == "server_error") != theirs
    assert (error.message, error.retry_after, str(error)) == ("Why.", 2.0, "Why.")


def test_an_error_in_a_stream_is_an_event():
    sent = error_event(errors.InternalServerError("The engine died."))
    assert json.loads(sent.removeprefix(b"data: "))["error"]["message"] == "The engine died."
    assert DONE == b"data: [DONE]\n\n"


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1, "1"), (1.2, "2"), (30, "30")])
def test_a_retry_is_never_said_to_be_worth_while_too_early(seconds, header):
    assert errors.RateLimitError("busy", retry_after=seconds).headers() == {"retry-after": header}


def test_an_error_may_have_headers_of_its_own():
    error = errors.AuthenticationError("who?", headers={"www-authenticate": "Bearer"})
    assert (error.status, error.headers()) == (401, {"www-authenticate": "Bearer"})
    assert errors.PermissionDeniedError("no").headers() == {}
