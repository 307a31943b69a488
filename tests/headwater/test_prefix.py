"""Prompts share the hashes of the blocks they share, and nothing else."""

import base64
import random
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from headwater import prefix
from headwater.prefix import (
    BLOCK_BYTES,
    ENDS,
    MAX_ATTACHMENTS,
    MAX_BLOCKS,
    MAX_BYTES,
    fold_attachments,
    root_hash,
    text_chain,
    token_chain,
)

# Roots


@given(*[st.tuples(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4), st.booleans())] * 2)
def test_roots_are_equal_only_where_all_ingredients_are(one, other):
    first, second = (
        root_hash(model, adapter=adapter, salt=salt, shape={"tools": b"[]"} if tools else None)
        for model, adapter, salt, tools in (one, other)
    )
    assert (first == second) == (one == other)


@given(*[st.dictionaries(st.sampled_from(["tools", "system"]), st.binary(max_size=3))] * 2)
def test_fields_that_shape_a_prompt_are_not_mistaken_for_one_another(one, other):
    ordered = [dict(sorted(shape.items())) for shape in (one, other)]
    assert (root_hash("m", shape=ordered[0]) == root_hash("m", shape=ordered[1])) == (one == other)


# Texts


@given(st.integers(0, 40 * BLOCK_BYTES).map(random.Random(0).randbytes), st.binary(max_size=BLOCK_BYTES))
def test_a_stream_that_goes_on_keeps_its_chain(stream, more):
    chain = text_chain(3, stream)
    assert ENDS[len(chain)] <= len(stream) // BLOCK_BYTES
    assert text_chain(3, stream + more)[: len(chain)] == chain


def test_each_hash_is_of_its_parent_and_its_block():
    stream = random.Random(0).randbytes(40 * BLOCK_BYTES + 5)
    chain, parent = [], 3
    for start, end in [*pairwise(range(33)), *pairwise(range(32, 41, 2))]:
        parent = xxh3_64_intdigest(stream[start * BLOCK_BYTES : end * BLOCK_BYTES], parent)
        chain.append(parent)
    assert text_chain(3, stream) == chain


def test_a_text_of_any_length_has_a_chain_of_bounded_length():
    longest = text_chain(3, bytes(MAX_BYTES))
    assert len(longest) == MAX_BLOCKS == len(ENDS) - 1
    assert BLOCK_BYTES * ENDS[-1] == MAX_BYTES
    assert text_chain(3, bytes(3 * MAX_BYTES)) == longest


@given(st.integers(0, MAX_BYTES + 5000))
def test_how_much_of_a_text_is_hashed_is_known_to_a_sixteenth(length):
    hashed = BLOCK_BYTES * ENDS[len(text_chain(3, bytes(length)))]
    assert hashed <= length
    assert min(length, MAX_BYTES) - hashed < max(BLOCK_BYTES, length / 16)


# Token ids


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


# Attachments


def image(seed: int = 0, size: int = 9_000) -> bytes:
    return base64.b64encode(random.Random(seed).randbytes(size))


def url(payload: bytes) -> bytes:
    return b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}' % payload


SOUND = b'{"type":"input_audio","input_audio":{"data":"%b","format":"wav"}}'


@pytest.mark.parametrize(
    "part",
    [
        url(image()),
        url(image(size=2_000_000)),
        url(image().replace(b"/", b"\\/")),
        url(image().replace(b"/", b"_").replace(b"+", b"-")),
        SOUND % image(),
        SOUND.replace(b":", b": ") % image(),
    ],
    ids=["image", "large image", "escaped slashes", "the alphabet of URLs", "sound", "with spaces"],
)
def test_an_attachment_is_one_block_whatever_its_size(part):
    text = b'[{"role":"user","content":[%b,{"type":"text","text":"What is this?"}'
    folded, attachments = fold_attachments(text % part)
    assert attachments == 1
    assert BLOCK_BYTES < len(folded) < BLOCK_BYTES + len(text) + 70
    assert folded.endswith(b'"text":"What is this?"}')


def test_different_attachments_make_different_chains():
    chains = [text_chain(0, fold_attachments(b"[%b" % url(image(seed)))[0]) for seed in (0, 1)]
    assert len(chains[0]) == len(chains[1]) == 1
    assert chains[0] != chains[1]


@given(st.lists(st.sampled_from([0, 1, 5_000, 20_000]), max_size=4), st.lists(st.integers(0, 9_000), max_size=4))
def test_what_comes_after_an_attachment_changes_nothing_before(sizes, more):
    def parts(lengths):
        return b"".join(url(image(size=size)) + b',{"text":"%b"},' % (b"so it is " * size) for size in lengths)

    beginning = parts(sizes)
    longer = fold_attachments(beginning + parts(more))[0]
    assert longer.startswith(fold_attachments(beginning)[0])


@pytest.mark.parametrize(
    "text",
    [
        "How a data URL begins: ;base64, and what may follow. " * 500,
        "Wo der Fluß entspringt. " * 500,
        "源头活水" * 5000,
        "\\u6e90\\u5934\\u6d3b\\u6c34" * 2000,
        "its checksum is " + "0123456789abcdef" * 500 + " as you see",
        "x" * 9_000,
    ],
)
def test_text_is_no_attachment(text):
    body = b'[{"role":"user","content":"%b"}' % text.encode()
    assert fold_attachments(body) == (body, 0)


@pytest.mark.parametrize(
    "text", [b'["' + b"A" * 9_000, b"1" * 9_000, b"A" * 9_000 + b'"', b'"' * 9_000, b'"data":"' + b"A" * 9_000]
)
def test_a_string_that_is_none_is_left_alone(text):
    assert fold_attachments(text) == (text, 0)


def test_attachments_without_number_are_counted_up_to_a_bound():
    _, attachments = fold_attachments(b"[" + b",".join([url(image())] * (MAX_ATTACHMENTS + 9)))
    assert attachments == MAX_ATTACHMENTS


@pytest.mark.parametrize("text", [url(image()) * 100, b'"' + b"A" * 5_000 + b' x"', b'"' + b"A" * 70, b'"a b'])
def test_looking_for_attachments_takes_few_looks(text, monkeypatch):
    looks = []
    look = prefix._encoded
    monkeypatch.setattr(prefix, "_encoded", lambda *place: looks.append(place) or look(*place))
    text *= 4_000_000 // len(text)
    fold_attachments(text)
    assert 0 < len(looks) <= len(text) // prefix._STRIDE
