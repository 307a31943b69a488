"""Prompts share the hashes of the blocks they share, and nothing else."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from headwater.prefix import (
    BLOCK_BYTES,
    chat_chain,
    completion_chain,
    responses_chain,
    root_hash,
    text_chain,
    token_chain,
)

PADDING = {"role": "user", "content": "x" * BLOCK_BYTES}
"""Appended to a conversation, it makes a chain reach past the conversation's own end."""

structure = st.sampled_from(["\xff", "\xffM", "\xffC", '","content":"', '"}', "\\u00ff", "\udcff", "user", "\x00"])
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


def body(conversation: list, **fields) -> dict:
    return {"model": "m", "messages": conversation, **fields}


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(conversations, conversations)
def test_a_longer_conversation_extends_the_chain(beginning, more):
    chain = chat_chain(body(beginning))
    assert chat_chain(body(beginning + more))[: len(chain)] == chain


@given(conversations, conversations, conversations)
def test_a_shared_prefix_of_messages_shares_a_chain_prefix(beginning, one, other):
    whole_blocks = len(chat_chain(body(beginning)))
    assert shared(chat_chain(body(beginning + one)), chat_chain(body(beginning + other))) >= whole_blocks


@given(st.text(min_size=1), st.text(), st.text())
def test_texts_with_a_common_beginning_share_its_blocks_within_a_message(seed, one, other):
    beginning = seed * (3 * BLOCK_BYTES // len(seed.encode()) + 1)
    first, second = (chat_chain(body([{"role": "user", "content": beginning + end}])) for end in (one, other))
    assert shared(first, second) >= 3


@given(conversations, conversations)
def test_different_conversations_do_not_collide(one, other):
    first, second = chat_chain(body([*one, PADDING])), chat_chain(body([*other, PADDING]))
    assert (first[-1] == second[-1]) == (one == other)


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_text_never_imitates_the_border_of_a_message(one, other):
    """The same characters, cut into messages in another way, are another prompt."""
    as_messages = [[{"role": "user", "content": text} for text in each] for each in (one, other)]
    first, second = (chat_chain(body([*each, PADDING])) for each in as_messages)
    assert (first[-1] == second[-1]) == (one == other)


def test_a_text_that_spells_our_own_markers_is_only_text():
    imitation = [{"role": "user", "content": "a\xffMassistant\xffCb"}]
    real = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert chat_chain(body([*imitation, PADDING])) != chat_chain(body([*real, PADDING]))


def test_a_null_field_of_a_message_is_one_that_is_not_there():
    assert chat_chain(body([{**PADDING, "name": None}])) == chat_chain(body([PADDING]))


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "other"},
        {"cache_salt": "tenant-a"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tools": [{"function": {"name": "f"}, "type": "function"}]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template": "{{ messages }}"},
        {"reasoning_effort": "low"},
        {"documents": [{"text": "d"}]},
    ],
)
def test_every_field_that_shapes_the_prompt_separates(fields):
    chains = [chat_chain({**body([PADDING]), **each}) for each in ({}, fields)]
    assert chains[0][0] != chains[1][0]


def test_the_adapter_separates():
    assert chat_chain(body([PADDING]), adapter="sql")[0] != chat_chain(body([PADDING]))[0]


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.5}, {"stream": True}, {"user": "u"}, {"add_generation_prompt": 0}]
)
def test_fields_that_leave_the_beginning_alone_do_not_separate(fields):
    assert chat_chain(body([PADDING], **fields)) == chat_chain(body([PADDING]))


def test_all_names_of_a_model_share_its_chains():
    assert chat_chain({**body([PADDING]), "model": "small"}, model="m") == chat_chain(body([PADDING]))


@given(*[st.tuples(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4), st.booleans())] * 2)
def test_roots_are_equal_only_where_all_ingredients_are(one, other):
    first, second = (
        root_hash(model, adapter=adapter, salt=salt, shape={"tools": []} if tools else None)
        for model, adapter, salt, tools in (one, other)
    )
    assert (first == second) == (one == other)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=128, max_size=128), st.integers(0, 127), st.integers(1, 2**30))
def test_token_prompts_of_equal_length_differ(ids, position, change):
    changed = [*ids]
    changed[position] = (changed[position] + change) % 2**31
    one, other = (completion_chain({"model": "m", "prompt": prompt}) for prompt in (ids, changed))
    assert len(one) == 1
    assert one != other


@given(st.lists(st.integers(0, 2**31 - 1)), st.integers(1, 20), st.data())
def test_a_token_chain_goes_on_from_any_of_its_hashes(ids, block_size, data):
    chain = token_chain(7, ids, block_size)
    assert len(chain) == len(ids) // block_size
    cut = data.draw(st.integers(0, len(chain)))
    parent = chain[cut - 1] if cut else 7
    assert chain[:cut] + token_chain(parent, ids[cut * block_size :], block_size) == chain


def test_the_hash_of_a_block_is_of_its_parent_and_its_little_endian_ids():
    first = xxh3_64_intdigest(struct.pack("<2I", 1, 2), 7)
    assert token_chain(7, [1, 2, 3, 4, 5], 2) == [first, xxh3_64_intdigest(struct.pack("<2I", 3, 4), first)]


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"], [1.5]])
def test_what_is_no_token_id_is_refused(ids):
    with pytest.raises(ValueError, match="token id"):
        token_chain(0, ids, 1)


LONG = "a" * 2 * BLOCK_BYTES
IDS = [97] * BLOCK_BYTES
PROMPTS = [LONG, ["a", LONG], ["a" * 9, LONG], IDS, [[97], IDS], [[97] * 9, IDS]]


def test_completion_prompts_of_every_form_have_chains_of_their_own():
    chains = [completion_chain({"model": "m", "prompt": prompt}) for prompt in PROMPTS]
    chains.append(chat_chain(body([{"role": "user", "content": LONG}])))
    chains.append(responses_chain({"model": "m", "input": LONG}))
    assert len({chain[-1] for chain in chains}) == len(chains)


def test_one_prompt_in_a_list_is_that_prompt():
    for prompt in (LONG, IDS):
        assert completion_chain({"model": "m", "prompt": prompt}) == completion_chain(
            {"model": "m", "prompt": [prompt]}
        )


def test_a_growing_completion_prompt_keeps_its_chain():
    chain = completion_chain({"model": "m", "prompt": LONG * 3})
    assert completion_chain({"model": "m", "prompt": LONG * 3 + "and more"})[: len(chain)] == chain


def test_responses_input_is_hashed_as_text_or_as_items():
    as_text = responses_chain({"model": "m", "input": LONG})
    assert as_text == responses_chain({"model": "m", "input": [{"role": "user", "content": LONG}]})
    assert as_text != responses_chain({"model": "m", "input": LONG, "instructions": "Be brief."})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["model", "messages", "prompt", "input", "tools", "cache_salt"]), json_values))
def test_no_json_body_makes_hashing_fail(body):
    for chain in (chat_chain, completion_chain, responses_chain):
        assert isinstance(chain(body), list)


@given(texts, st.integers(1, 200))
def test_long_texts_are_hashed_as_one_stream(text, repeats):
    """However a text is handled inside, its chain is that of its bytes."""
    long = text * repeats * 50
    stream = b"\xffS" + long.encode("utf-8", "surrogatepass")
    chain, parent = [], 3
    for start in range(0, len(stream) - BLOCK_BYTES + 1, BLOCK_BYTES):
        parent = xxh3_64_intdigest(stream[start : start + BLOCK_BYTES], parent)
        chain.append(parent)
    assert text_chain(3, long) == chain
