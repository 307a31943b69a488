"""A text completion's prompt comes back as it was, and each token's offset is where it begins in the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.server.detokenizer import TokenText
from headwater_engine.server.echo import Pieces, echo_of_text, echo_of_tokens
from tests.engine.chat_models import tokenizer

MODELS = ["llama2", "llama3_1", "gemma3", "smollm2"]
TEXTS = ["Hello  the world", " a", "世\U00020000界", "naïve\n\n\tfox 12345", "a</s>b<|eot_id|><eos>c"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_echoed_to_the_letter_and_its_tokens_begin_in_it(name: str, text: str) -> None:
    backend = tokenizer(name).backend_tokenizer
    for added in (True, False):
        tokens = backend.encode(text, add_special_tokens=added).ids
        echo = echo_of_text(backend, text, tokens, added=added)
        assert echo.text == text
        text_of = TokenText(backend)
        for token, begin, end in zip(tokens, echo.offsets, [*echo.offsets[1:], len(text)], strict=True):
            shown, data = text_of(token)
            if begin < end and "\ufffd" not in shown:
                # A token that begins a text may stand for a space before it.
                assert text[begin:end] in (shown, shown.removeprefix(" "))
            assert data


def test_a_first_token_that_the_tokenizer_added_has_no_length() -> None:
    backend = tokenizer("llama2").backend_tokenizer
    tokens = backend.encode("Hello").ids
    assert backend.id_to_token(tokens[0]) == "<s>"
    assert echo_of_text(backend, "Hello", tokens, added=True).offsets[:3] == (0, 0, 1)
    tokens = backend.encode("<s>Hello", add_special_tokens=False).ids
    assert echo_of_text(backend, "<s>Hello", tokens, added=False).offsets[:3] == (0, 3, 4)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_echoed_as_their_text_and_go_on_where_it_ends(name: str) -> None:
    backend = tokenizer(name).backend_tokenizer

    @given(st.lists(st.sampled_from(TEXTS).map(lambda text: backend.encode(text).ids), max_size=3), st.integers(0, 30))
    def holds(parts: list[list[int]], cut: int) -> None:
        tokens = [token for part in parts for token in part]
        prompt, output = tokens[:cut], tokens[cut:]
        whole = backend.decode(tokens, skip_special_tokens=True)
        echo = echo_of_tokens(backend, tokens)
        assert echo.text == whole
        assert list(echo.offsets) == sorted(echo.offsets)
        assert not echo.offsets or echo.offsets[-1] <= len(whole)
        pieces = Pieces(backend, prompt, TokenText(backend))
        if prompt and not backend.decode(prompt[-6:]).endswith("\ufffd") and backend.decode(prompt):
            shown = len(backend.decode(prompt, skip_special_tokens=True))
            assert shown + sum(len(pieces.of(token)) for token in output) == len(whole)

    holds()
