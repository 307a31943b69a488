"""Text comes out token by token, as if it had been decoded at once, and no character comes in parts."""

from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from headwater_engine.models.tokenizer import byte_level_tokenizer
from headwater_engine.server.detokenizer import Detokenizer, TokenText
from tests.engine import chat_models

REPLACEMENT = "\ufffd"
SAMPLES = [
    "The quick brown fox.\n\n    indented, 12345",
    "日本語と中文と한국어、そして𠮷野家",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumb",
    "Cafe\u0301 nai\u0308ve \u1112\u1161\u11ab",
    "שלום עולם مرحبا नमस्ते สวัสดี",
    "a\u0000b\u200b\ufeffc",
]


@cache
def tokenizer(name: str) -> Tokenizer:
    if name == "bytes":
        return byte_level_tokenizer(300).backend_tokenizer
    return chat_models.tokenizer(name).backend_tokenizer


def pieces_of(backend: Tokenizer, prompt: list[int], output: list[int]) -> list[str]:
    detokenizer = Detokenizer(backend, prompt)
    return [*(detokenizer.add(token) for token in output), detokenizer.flush()]


def decode(backend: Tokenizer, tokens: list[int]) -> str:
    return backend.decode(tokens, skip_special_tokens=True)


def tokens_of(name: str) -> st.SearchStrategy[list[int]]:
    """Any tokens, and among them many that are not whole characters."""
    backend = tokenizer(name)
    size = backend.get_vocab_size()
    partial = [token for token in range(min(size, 512)) if REPLACEMENT in decode(backend, [token])]
    whole = st.sampled_from(SAMPLES).map(lambda text: backend.encode(text, add_special_tokens=False).ids)
    single = st.one_of(st.integers(0, size - 1), st.sampled_from(partial)).map(lambda token: [token])
    return st.lists(st.one_of(single, single, whole), max_size=24).map(
        lambda parts: [t for part in parts for t in part]
    )


@pytest.mark.parametrize("name", ["smollm2", "bytes"])
def test_pieces_join_to_the_decoded_answer_whatever_the_tokens(name: str) -> None:
    backend = tokenizer(name)

    @given(st.sampled_from(SAMPLES), tokens_of(name))
    @example(SAMPLES[0], [])
    @example(SAMPLES[0], backend.encode("中" * 40, add_special_tokens=False).ids[1:])
    def holds(prompt: str, output: list[int]) -> None:
        before = backend.encode(prompt, add_special_tokens=False).ids
        assert "".join(pieces_of(backend, before, output)) == decode(backend, before + output)[len(prompt) :]

    holds()


@pytest.mark.parametrize("name", ["smollm2", "bytes"])
def test_no_piece_but_the_last_ends_within_a_character(name: str) -> None:
    backend = tokenizer(name)

    @given(st.sampled_from(SAMPLES), st.sampled_from(SAMPLES))
    def holds(prompt: str, answer: str) -> None:
        ids = backend.encode(answer, add_special_tokens=False).ids
        for end in range(1, len(ids) + 1):
            *shown, last = pieces_of(backend, backend.encode(prompt).ids, ids[:end])
            assert REPLACEMENT not in "".join(shown)
            assert answer.startswith("".join(shown) + last.rstrip(REPLACEMENT))

    holds()


@pytest.mark.parametrize("name", ["smollm2", "bytes", "llama2", "gemma3"])
def test_the_prompt_may_end_within_a_character(name: str) -> None:
    backend = tokenizer(name)
    for text in ("中文", "👩‍👩‍👧‍👦", "𠮷"):
        ids = backend.encode(text, add_special_tokens=False).ids
        for cut in range(1, len(ids)):
            before = decode(backend, ids[:cut]).rstrip(REPLACEMENT)
            assert "".join(pieces_of(backend, ids[:cut], ids[cut:])) == text[len(before) :]


def test_text_is_shown_with_the_token_that_completes_it() -> None:
    backend = tokenizer("bytes")
    ids = backend.encode("aé中", add_special_tokens=False).ids
    assert pieces_of(backend, [ids[0]], ids) == ["a", "", "é", "", "", "中", ""]


def test_invalid_bytes_are_shown_after_some_tokens_and_cost_no_character_behind_them() -> None:
    backend = tokenizer("bytes")
    continuation = backend.encode("é", add_special_tokens=False).ids[1]
    valid = backend.encode("中", add_special_tokens=False).ids
    pieces = pieces_of(backend, [], [continuation] * 20 + valid)
    assert "".join(pieces[:20]).startswith(REPLACEMENT * 12)
    assert "".join(pieces) == REPLACEMENT * 20 + "中"


def test_special_tokens_have_no_text_and_are_no_context() -> None:
    """A decoder that drops the space before a text's first token would drop it behind a special token, too."""
    backend = Tokenizer(models.WordLevel({"▁Hello": 0, "▁world": 1, "<s>": 2}, unk_token="<s>"))
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>"])
    assert pieces_of(backend, [0], [1, 2, 2, 2, 1]) == [" world", "", "", "", " world", ""]


def test_byte_fallback_tokens_join_to_characters() -> None:
    names = ["▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="▁a"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    output = [1 + byte for byte in "中é".encode()]
    assert pieces_of(backend, [0], output) == ["", "", "中", "", "é", ""]
    assert TokenText(backend)(output[0]) == (REPLACEMENT, [0xE4])


@pytest.mark.parametrize("name", ["smollm2", "bytes"])
def test_bytes_of_single_tokens_join_to_the_text(name: str) -> None:
    backend = tokenizer(name)
    text_of = TokenText(backend)
    for sample in SAMPLES:
        parts = [text_of(token) for token in backend.encode(sample, add_special_tokens=False).ids]
        assert bytes(byte for _, data in parts for byte in data).decode() == sample


@pytest.mark.parametrize("name", ["llama2", "gemma3", "llama3", "smollm2"])
def test_a_token_that_begins_with_a_space_has_it_and_no_other_is_written_like_it(name: str) -> None:
    backend = tokenizer(name)
    text_of = TokenText(backend)
    assert "".join(text_of(token)[0] for token in backend.encode("the world").ids[-2:]).endswith(" world")
    texts: dict[str, list[str]] = {}
    for token in range(backend.get_vocab_size()):
        text, data = text_of(token)
        if REPLACEMENT not in text:
            assert bytes(data).decode() == text
            texts.setdefault(text, []).append(str(backend.id_to_token(token)))
    # But for bytes, which some vocabularies have beside the characters.
    assert all(len(names) == 1 or any(each.startswith("<0x") for each in names) for names in texts.values())


def test_a_token_of_whole_characters_is_not_decoded_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = tokenizer("smollm2")
    detokenizer = Detokenizer(backend, [1])
    tokens = backend.encode("What a token costs is paid for each.", add_special_tokens=False).ids
    monkeypatch.setattr(Detokenizer, "_decode", None)
    assert "".join(map(detokenizer.add, tokens)) == decode(backend, tokens)
