"""Requests become prompts: a chain of the text always, token ids where they are known, a fair count of tokens."""

import pytest

from headwater.prefix import chat_chain, completion_chain, token_chain
from headwater_router.index import PromptBuilder
from headwater_router.index.stored import KEY_TOKENS, token_root

TEXT = "A headwater is where streams begin. " * 60


def chat(text: str, **fields: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def test_chats_and_completions_are_hashed_by_their_text() -> None:
    builder = PromptBuilder()
    body = chat(TEXT)
    assert builder.build("/v1/chat/completions", body, []).text_chain == chat_chain(body)
    body = {"model": "m", "prompt": TEXT}
    assert builder.build("/v1/completions", body, []).text_chain == completion_chain(body)


def test_responses_are_hashed_too() -> None:
    prompt = PromptBuilder().build("/v1/responses", {"model": "m", "input": TEXT}, [])
    assert prompt.text_chain
    assert prompt.tokens == pytest.approx(len(TEXT) / 4, rel=0.05)


def test_an_alias_hashes_as_the_model_it_means() -> None:
    builder = PromptBuilder()
    named = builder.build("/v1/chat/completions", chat(TEXT), [])
    alias = builder.build("/v1/chat/completions", chat(TEXT, model="alias"), [], model="m")
    adapted = builder.build("/v1/chat/completions", chat(TEXT), [], adapter="sql")
    assert (alias.model, alias.text_chain) == (named.model, named.text_chain)
    assert adapted.text_chain != named.text_chain


@pytest.mark.parametrize(
    "body", [{}, {"messages": "x"}, {"messages": [None, 5, {"role": 3}]}, {"prompt": {}}, {"prompt": [1, "x"]}]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"])
def test_a_body_that_makes_no_sense_still_gives_a_prompt(path: str, body: dict[str, object]) -> None:
    prompt = PromptBuilder().build(path, body, [])
    assert list(prompt.text_chain) == []
    assert prompt.tokens >= 1


@pytest.mark.parametrize("text", [TEXT, "Wo der Fluß entspringt, fließt Wasser für größere Flüsse. " * 40])
def test_tokens_are_estimated_from_bytes(text: str) -> None:
    expected = len(text.encode()) / 4
    as_parts = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}
    builder = PromptBuilder()
    for body in (chat(text), as_parts):
        assert builder.build("/v1/chat/completions", body, []).tokens == pytest.approx(expected, rel=0.05)


def test_tools_count_as_tokens() -> None:
    builder = PromptBuilder()
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 4000}}]
    plain = builder.build("/v1/chat/completions", chat("hi"), [])
    with_tools = builder.build("/v1/chat/completions", chat("hi", tools=tools), [])
    assert with_tools.tokens - plain.tokens >= 1000


def test_the_estimate_learns_from_usage() -> None:
    builder = PromptBuilder()
    for _ in range(200):
        builder.learn(builder.build("/v1/chat/completions", chat(TEXT), []), 300)
    prompt = builder.build("/v1/chat/completions", chat(TEXT), [])
    assert prompt.tokens == pytest.approx(300, rel=0.05)
    assert prompt.text_block_tokens == pytest.approx(512 * 300 / len(TEXT), rel=0.05)


def test_token_ids_are_counted_and_hashed_as_such() -> None:
    ids = list(range(100))
    for given in (ids, [ids]):
        prompt = PromptBuilder().build("/v1/completions", {"model": "m", "prompt": given, "cache_salt": "t"}, [])
        assert prompt.tokens == 100
        assert prompt.token_chain == token_chain(token_root(salt="t"), ids, KEY_TOKENS)
        assert prompt.text_block_tokens == 128


@pytest.mark.parametrize("ids", [[1, -5], [1, 2**40], [True, 2]])
def test_numbers_that_are_no_token_ids_have_no_token_chain(ids: list[int]) -> None:
    assert PromptBuilder().build("/v1/completions", {"prompt": ids}, []).token_chain is None


class FixedTokenizer:
    def chat(self, body: object) -> list[int] | None:
        return list(range(40))

    def completion(self, body: object) -> list[int] | None:
        return None


def test_a_tokenizer_makes_prompts_exact_where_it_can() -> None:
    builder = PromptBuilder(tokenizers={"m": FixedTokenizer()})
    prompt = builder.build("/v1/chat/completions", chat("hi"), [])
    assert (prompt.tokens, prompt.token_chain) == (40, token_chain(token_root(), list(range(40)), KEY_TOKENS))
    assert builder.build("/v1/completions", {"model": "m", "prompt": "hi"}, []).token_chain is None
    assert builder.build("/v1/chat/completions", chat("hi", model="other"), []).token_chain is None


def test_the_session_header_and_streaming_are_taken_along() -> None:
    builder = PromptBuilder(session_header="X-User")
    headers = [(b"host", b"h"), (b"x-user", b"anna")]
    prompt = builder.build("/v1/chat/completions", chat("hi", stream=True), headers)
    assert (prompt.session, prompt.streamed) == ("anna", True)
    prompt = builder.build("/v1/chat/completions", chat("hi"), [])
    assert (prompt.session, prompt.streamed) == (None, False)
