"""Requests become prompts: a chain of the text always, token ids where they are known, a fair count of tokens."""

import asyncio
import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.prefix import BLOCK_BYTES, MAX_BLOCKS, MAX_TOKENS, token_chain
from headwater_router.gateway.body import read_body
from headwater_router.index import PrefixIndex, PromptBuilder
from headwater_router.index.folds import KEY_TOKENS
from headwater_router.index.prompt import ATTACHMENT_TOKENS, MAX_EXACT_BYTES
from headwater_router.index.stored import token_root
from headwater_router.index.tokenizers import Tokenizers
from headwater_router.picker import make
from headwater_router.picker.base import Load, Prompt, Target

TEXT = "A headwater is where streams begin. " * 60
PATHS = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
PADDING = {"role": "user", "content": "x" * 2 * BLOCK_BYTES}
"""Appended to a conversation, it makes a chain reach past the conversation's own end."""

structure = st.sampled_from(["\xff", '","content":"', '"}', "\\u00ff", "user", "\x00"])
texts = st.lists(st.one_of(st.text(), structure), max_size=5).map("".join)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, st.text(max_size=9)),
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.one_of(texts, st.lists(parts))},
    optional={
        "name": st.text(max_size=3),
        "tool_calls": st.lists(st.fixed_dictionaries({"id": st.text(max_size=3)}), min_size=1, max_size=2),
    },
)
conversations = st.lists(messages, max_size=4)


def build(body: dict[str, Any], kind: str = "chat", builder: PromptBuilder | None = None, **known: str) -> Prompt:
    model = known.pop("model", "m")
    data = json.dumps({"model": "any", **body}).encode()
    return (builder or PromptBuilder()).build(PATHS[kind], read_body(data), [], model=model, **known)


def chain(body: dict[str, Any], kind: str = "chat", **known: str) -> list[int]:
    return list(build(body, kind, **known).text_chain)


def chat(*conversation: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(conversation), **fields}


def saying(text: str, **fields: Any) -> dict[str, Any]:
    return chat({"role": "user", "content": text}, **fields)


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# Chains


@given(conversations, conversations)
def test_a_longer_conversation_extends_the_chain(beginning: list[Any], more: list[Any]) -> None:
    before = chain(chat(*beginning))
    assert chain(chat(*beginning, *more))[: len(before)] == before


@given(st.text(min_size=1), st.text(), st.text())
def test_texts_with_a_common_beginning_share_its_blocks_within_a_message(seed: str, one: str, other: str) -> None:
    beginning = seed * (3 * BLOCK_BYTES // len(seed.encode()) + 1)
    first, second = (chain(saying(beginning + end)) for end in (one, other))
    assert shared(first, second) >= 3


@given(conversations, conversations)
def test_different_conversations_do_not_collide(one: list[Any], other: list[Any]) -> None:
    first, second = chain(chat(*one, PADDING)), chain(chat(*other, PADDING))
    assert (first[-1] == second[-1]) == (
        json.dumps(one) == json.dumps(other)
    )  # Also the order of keys tells them apart.


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": "tenant-a"},
        {"extra_key": "experiment"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tools": [{"function": {"name": "f"}, "type": "function"}]},
        {"functions": [{"name": "f"}]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template": "{{ messages }}"},
        {"reasoning_effort": "low"},
        {"documents": [{"text": "d"}]},
        {"add_special_tokens": True},
        {"system": "Be brief."},
        {"instructions": "Be brief."},
        {"previous_response_id": "r"},
    ],
)
def test_every_field_that_shapes_the_prompt_separates(fields: dict[str, Any]) -> None:
    assert chain(chat(PADDING, **fields))[0] != chain(chat(PADDING))[0]


def test_the_adapter_and_the_model_separate() -> None:
    chains = [chain(chat(PADDING), **known) for known in ({}, {"adapter": "sql"}, {"model": "other"})]
    assert len({each[0] for each in chains}) == 3


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.5}, {"stream": True}, {"user": "u"}, {"add_generation_prompt": 0}, {"tools": None}]
)
def test_fields_that_leave_the_beginning_alone_do_not_separate(fields: dict[str, Any]) -> None:
    assert chain(chat(PADDING, **fields)) == chain(chat(PADDING))


def test_all_names_of_a_model_share_its_chains() -> None:
    assert chain(chat(PADDING, model="small")) == chain(chat(PADDING, model="large"))


LONG = "a" * 2 * BLOCK_BYTES
IDS = [97] * BLOCK_BYTES
PROMPTS = [LONG, ["a", LONG], ["a" * 9, LONG], IDS, [[97], IDS], [[97] * 9, IDS]]


def test_prompts_of_every_form_have_chains_of_their_own() -> None:
    chains = [chain({"prompt": prompt}, "text") for prompt in PROMPTS]
    chains += [chain({"input": LONG}, "responses"), chain({"input": [PADDING]}, "responses")]
    chains += [chain(chat(PADDING), kind) for kind in ("chat", "messages")]
    assert len({each[-1] for each in chains}) == len(chains)


def test_one_prompt_in_a_list_is_that_prompt() -> None:
    for prompt in (LONG, IDS):
        assert chain({"prompt": prompt}, "text") == chain({"prompt": [prompt]}, "text")


def test_a_growing_prompt_keeps_its_chain() -> None:
    for longer, kind, field in (
        (LONG * 3, "text", "prompt"),
        (IDS * 3, "text", "prompt"),
        (LONG * 3, "responses", "input"),
    ):
        before = chain({field: longer}, kind)
        assert len(before) > 3
        assert chain({field: longer + longer}, kind)[: len(before)] == before


@pytest.mark.parametrize(
    "body", [{}, {"messages": "x"}, {"messages": [None, 5, {"role": 3}]}, {"prompt": {}}, {"prompt": [1, "x"]},
             {"messages": None, "prompt": None, "input": None}, {"messages": 3, "prompt": 3, "input": 3}]
)  # fmt: skip
@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/embeddings", "/", ""])
def test_a_body_that_makes_no_sense_still_gives_a_prompt(path: str, body: dict[str, Any]) -> None:
    prompt = PromptBuilder().build(path, read_body(json.dumps(body).encode()), [], model="m")
    assert list(prompt.text_chain) == []
    assert prompt.tokens >= 1


# How many tokens


@pytest.mark.parametrize("text", [TEXT, "Wo der Fluß entspringt, fließt Wasser für größere Flüsse. " * 40])
def test_tokens_are_estimated_from_bytes(text: str) -> None:
    as_parts = chat({"role": "user", "content": [{"type": "text", "text": text}]})
    for body, kind in ((saying(text), "chat"), (as_parts, "chat"), ({"input": text}, "responses")):
        data = json.dumps(body, ensure_ascii=False).encode()
        prompt = PromptBuilder().build(PATHS[kind], read_body(data), [], model="m")
        assert prompt.tokens == pytest.approx(len(text.encode()) / 4, rel=0.05)


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_what_stands_beside_the_text_counts_as_tokens(kind: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 4000}}]
    body = {**saying("hi"), "input": "hi"}
    assert build({**body, "tools": tools}, kind).tokens - build(body, kind).tokens >= 1000


def test_an_image_counts_as_an_image_and_not_as_text() -> None:
    payload = base64.b64encode(random.Random(0).randbytes(300_000)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{payload}"}}
    builder = PromptBuilder()
    prompt = build(chat({"role": "user", "content": [part, {"type": "text", "text": "What?"}]}), builder=builder)
    assert prompt.tokens == pytest.approx(ATTACHMENT_TOKENS, rel=0.05)
    assert len(prompt.text_chain) == 1
    assert prompt.text_block_tokens * (len(prompt.text_chain) + 1) > ATTACHMENT_TOKENS / 2
    builder.learn(prompt, 200)
    assert build(saying(TEXT), builder=builder).tokens == build(saying(TEXT)).tokens


def test_the_estimate_learns_from_usage() -> None:
    builder = PromptBuilder()
    for _ in range(200):
        builder.learn(build(saying(TEXT), builder=builder), 300)
    prompt = build(saying(TEXT), builder=builder)
    assert prompt.tokens == pytest.approx(300, rel=0.05)
    assert prompt.text_block_tokens == pytest.approx(512 * 300 / len(TEXT), rel=0.05)


@pytest.mark.parametrize("odd", ["images", "short token ids"])
def test_no_single_prompt_makes_an_endpoints_cache_look_small(odd: str) -> None:
    index, target = PrefixIndex(), Target("a", Load(total_blocks=2000, block_size=16))
    picker = make("prefix", index, random.Random(0))
    for number in range(9):
        picker.pick(build(saying(f"{number} " + TEXT * 5)), [target], float(number))
    held = index.size().dispatched
    assert held > 188
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 9000}"}}
    prompts = {
        "images": build(chat({"role": "user", "content": [image] * 9})),
        "short token ids": build({"prompt": [1] * 2000}, "text"),
    }
    assert prompts[odd].text_block_tokens > 170
    picker.pick(prompts[odd], [target], 9.0)
    assert index.size().dispatched > held


def test_names_that_clients_think_of_are_not_remembered() -> None:
    builder = PromptBuilder()
    for number in range(50):
        builder.learn(build(saying(TEXT, model=f"x{number}", cache_salt=f"s{number}"), builder=builder), 300)
    assert list(builder._bytes_per_token) == ["m"]


# Token ids


def test_token_ids_are_counted_and_hashed_as_such() -> None:
    ids = list(range(100, 400))
    for given_ids in (ids, [ids]):
        prompt = build({"prompt": given_ids, "cache_salt": "t"}, "text")
        assert prompt.tokens == 300
        assert prompt.token_chain == token_chain(token_root(salt="t"), ids, KEY_TOKENS)
        assert len(prompt.text_chain) * prompt.text_block_tokens == pytest.approx(300, abs=prompt.text_block_tokens)


@pytest.mark.parametrize(
    "ids", [[1, -5], [1, 2**40], [True, 2], [1.5], [1, "x"], [[1], [2]], [[]], [[1], 2], [2, [1]], [[[1]]], [10**400]]
)
def test_what_is_no_list_of_token_ids_has_no_token_chain(ids: list[Any]) -> None:
    assert build({"prompt": ids}, "text").token_chain is None


def test_a_salt_that_is_none_gives_no_token_chain() -> None:
    assert build({"prompt": [1] * 20, "cache_salt": 5}, "text").token_chain is None


def test_a_prompt_with_an_extra_key_is_not_matched_against_events_which_do_not_tell_it() -> None:
    assert build({"prompt": [1] * 20, "extra_key": "experiment"}, "text").token_chain is None
    assert build({"prompt": [1] * 20, "extra_key": None}, "text").token_chain is not None


@pytest.mark.parametrize("given_id", [1, 151_643])
def test_a_long_list_of_token_ids_is_hashed_as_far_as_prompts_go(given_id: int) -> None:
    prompt = build({"prompt": [given_id] * 4 * MAX_TOKENS}, "text")
    assert prompt.tokens == 4 * MAX_TOKENS
    assert len(prompt.token_chain or []) <= MAX_TOKENS // KEY_TOKENS
    assert len(prompt.text_chain) == MAX_BLOCKS


class FixedTokenizer:
    def __init__(self) -> None:
        self.asked = 0

    def chat(self, body: object) -> list[int] | None:
        self.asked += 1
        return list(range(40))

    def completion(self, body: object) -> list[int] | None:
        self.asked += 1
        return None


async def build_exact(body: dict[str, Any], builder: PromptBuilder, kind: str = "chat", model: str = "m") -> Prompt:
    read = read_body(json.dumps({"model": "any", **body}).encode())
    prompt = builder.build(PATHS[kind], read, [], model=model)
    if (exact := builder.exact(prompt, PATHS[kind], read)) is not None:
        await exact
    return prompt


async def test_a_tokenizer_makes_prompts_exact_where_it_can() -> None:
    builder = PromptBuilder(tokenizers=Tokenizers({"m": FixedTokenizer()}))
    prompt = await build_exact(saying("hi"), builder)
    assert (prompt.tokens, prompt.token_chain) == (40, token_chain(token_root(), list(range(40)), KEY_TOKENS))
    assert (await build_exact({"prompt": "hi"}, builder, "text")).token_chain is None
    assert (await build_exact(saying("hi"), builder, model="other")).token_chain is None


async def test_a_tokenizer_that_counts_other_tokens_than_the_engine_is_not_used_until_it_is_right_again() -> None:
    builder = PromptBuilder(tokenizers=Tokenizers({"m": FixedTokenizer()}))
    for wrong in [True] * 7 + [False] + [True] * 8:
        prompt = await build_exact(saying("hi"), builder)
        assert prompt.token_chain is not None
        builder.learn(prompt, 41 if wrong else 40)
    assert (await build_exact(saying("hi"), builder)).token_chain is None
    assert builder.tokenizers.distrust("m") == "it counted 40 tokens in a prompt, the engine 41"
    builder.tokenizers.compared("m", "")
    assert (await build_exact(saying("hi"), builder)).token_chain is not None
    builder.tokenizers.compared("m", "other ids")
    assert builder.tokenizers.distrust("m") == "other ids"
    assert builder.tokenizers.distrust("other") is None


async def test_where_too_much_waits_to_be_tokenized_prompts_are_matched_by_their_text() -> None:
    builder = PromptBuilder(tokenizers=Tokenizers({"m": FixedTokenizer()}))
    builder.tokenizers._waiting = 16 << 20
    assert (await build_exact(saying("hi"), builder)).token_chain is None
    assert builder.tokenizers.busy == 1


async def test_tokenizers_of_a_folder_are_read_when_their_models_are_asked_for(tmp_path: Path) -> None:
    read: list[Path] = []

    def load(folder: Path) -> FixedTokenizer:
        read.append(folder)
        if folder.name == "m":
            return FixedTokenizer()
        raise FileNotFoundError

    tokenizers = Tokenizers(folder=tmp_path, load=load)
    builder = PromptBuilder(tokenizers=tokenizers)
    for model in ("m", "n", "..", "../x", "/etc"):
        assert (await build_exact(saying("hi"), builder, model=model)).token_chain is None
    await asyncio.gather(*tokenizers._loading)
    assert (await build_exact(saying("hi"), builder)).token_chain is not None
    assert (await build_exact(saying("hi"), builder, model="n")).token_chain is None
    assert sorted(read) == [tmp_path / "m", tmp_path / "n"]


@pytest.mark.parametrize(
    "conversation",
    [[{"role": "user", "content": "x" * MAX_EXACT_BYTES}], [[]] * (MAX_EXACT_BYTES // 2)],
    ids=["text", "lists"],
)
async def test_what_is_long_is_not_read_for_a_tokenizer(conversation: list[Any]) -> None:
    tokenizer = FixedTokenizer()
    prompt = await build_exact(chat(*conversation), PromptBuilder(tokenizers=Tokenizers({"m": tokenizer})))
    assert (tokenizer.asked, prompt.token_chain, len(prompt.text_chain)) == (0, None, MAX_BLOCKS)


# What else the picker needs


def test_the_session_header_and_streaming_are_taken_along() -> None:
    builder = PromptBuilder(session_header="X-User")
    headers = [(b"host", b"h"), (b"x-user", b"anna")]
    body = read_body(json.dumps(saying("hi", stream=True)).encode())
    prompt = builder.build(PATHS["chat"], body, headers, model="m")
    assert (prompt.session, prompt.streamed) == ("anna", True)
    prompt = build(saying("hi"), builder=builder)
    assert (prompt.session, prompt.streamed) == (None, False)


def test_the_policy_is_told_which_adapter_a_request_is_for() -> None:
    body = saying(TEXT)
    assert (build(body, adapter="sql").adapter, build(body).adapter) == ("sql", "")
