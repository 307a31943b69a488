"""Of a text only what is new is tokenized, and its ids are those of the whole."""

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from headwater_router.index.segments import SegmentedTokenizer

SPECIAL = ["<|start|>", "<|end|>", "<|end|>of"]
CORPUS = ["the gauge of the river is read at noon", "naïve\n\nlines  and spaces", '{"level": 12.5, "unit": "m"}'] * 20


def tokenizer(*, lstrip: bool = False, prepend: bool = False) -> Tokenizer:
    """Bytes and what often follows on one another. `prepend`: a text begins with a space, as SentencePiece has it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    if prepend:
        made.normalizer = normalizers.Prepend(" ")  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens([AddedToken(each, lstrip=lstrip, normalized=False, special=True) for each in SPECIAL])
    return made


WHOLE = tokenizer()
SEGMENTED = SegmentedTokenizer(tokenizer())
pieces = st.sampled_from([*SPECIAL, "<|end|", "the river", " of", "\n", "  ", "naïve", "日本", "12.5"])
texts = st.lists(st.one_of(pieces, st.text(st.characters(codec="utf-8"), max_size=4)), max_size=12).map("".join)


@given(text=texts)
def test_ids_are_those_of_the_whole_text(text: str) -> None:
    assert SEGMENTED.incremental
    for _ in range(2):
        assert list(SEGMENTED.encode(text, add_special_tokens=False)) == WHOLE.encode(text).ids


class Counting:
    """Counts the characters that are tokenized."""

    def __init__(self, segmented: SegmentedTokenizer) -> None:
        self._real = segmented._tokenizer
        self.characters = 0
        segmented._tokenizer = self  # type: ignore[assignment]

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self._real.encode_batch_fast(texts, **options)


def test_of_a_conversation_only_what_is_new_is_tokenized() -> None:
    segmented = SegmentedTokenizer(tokenizer())
    counting = Counting(segmented)
    text = ""
    for turn in range(20):
        new = f"<|start|>turn {turn}: " + "the gauge of the river " * 50 + "<|end|>"
        text += new
        before = counting.characters
        assert list(segmented.encode(text, add_special_tokens=False)) == WHOLE.encode(text).ids
        assert counting.characters - before <= len(new)


@pytest.mark.parametrize("options", [{"lstrip": True}, {"prepend": True}])
def test_a_tokenizer_whose_texts_are_not_made_of_parts_tokenizes_them_whole(options: dict[str, bool]) -> None:
    made = tokenizer(**options)
    segmented = SegmentedTokenizer(tokenizer(**options))
    text = "the river <|start|> of the gauge<|end|>of noon"
    assert list(segmented.encode(text, add_special_tokens=False)) == made.encode(text, add_special_tokens=False).ids
    assert not segmented.incremental or options == {"prepend": True}


def test_texts_are_tokenized_whole_from_when_a_part_turns_out_to_be_wrong() -> None:
    segmented = SegmentedTokenizer(tokenizer())
    text = "<|start|>the river<|end|>"
    expected = segmented.encode(text, add_special_tokens=False)
    for key in segmented._kept:
        segmented._kept[key] = array("I", [1]).tobytes()
    while segmented.incremental:
        found = segmented.encode(text, add_special_tokens=False)
    assert found == expected


def test_a_text_of_very_many_parts_is_tokenized_whole() -> None:
    segmented = SegmentedTokenizer(tokenizer())
    text = "<|end|>" * 5000
    assert list(segmented.encode(text, add_special_tokens=False)) == WHOLE.encode(text).ids
    assert not segmented._kept


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater_router.index.segments._MOST_BYTES", 4000)
    segmented = SegmentedTokenizer(tokenizer())
    for number in range(200):
        segmented.encode(f"<|start|>{number} the river is read at noon", add_special_tokens=False)
    assert segmented._bytes == sum(map(len, segmented._kept.values())) <= 4000
