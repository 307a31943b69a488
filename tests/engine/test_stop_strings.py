"""A text ends at the first stop string in it, however it is cut into pieces, and no part of that is ever shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_engine.core.messages import FinishReason, Output
from headwater_engine.models.tokenizer import byte_level_tokenizer
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server.answer import Reader
from headwater_engine.server.stop_strings import StopStrings

TOKENIZER = byte_level_tokenizer(300).backend_tokenizer


def feed(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """The shown pieces, with what was released at the end, and the stop string that was found."""
    searcher, shown = StopStrings(stops), []
    for piece in pieces:
        text, stop = searcher.feed(piece)
        shown.append(text)
        if stop is not None:
            return shown, stop
    return [*shown, searcher.flush()], None


def ends_at(stops: list[str], text: str) -> tuple[str, str | None]:
    """The reference: read characters until a stop string is complete; of several, the one that began first."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


letters = st.text("ab", max_size=4)


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.lists(letters, max_size=8))
def test_where_a_text_ends_does_not_depend_on_its_pieces(stops: list[str], pieces: list[str]) -> None:
    shown, found = feed(stops, pieces)
    assert ("".join(shown), found) == ends_at(stops, "".join(pieces))


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.lists(letters, max_size=8))
def test_only_what_may_begin_a_stop_string_is_held_back(stops: list[str], pieces: list[str]) -> None:
    searcher, shown, text = StopStrings(stops), "", ""
    for piece in pieces:
        new, found = searcher.feed(piece)
        shown, text = shown + new, text + piece
        if found is not None:
            return
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
        assert not any(text.endswith(stop[:length]) for stop in stops for length in range(len(held) + 1, len(stop)))


def test_a_stop_string_across_pieces_is_never_shown_in_part() -> None:
    assert feed(["</end>"], ["one ", "<", "/e", "nd>", "two"]) == (["one ", "", "", ""], "</end>")


def test_what_was_held_back_comes_when_it_is_no_stop_string_or_the_text_ends() -> None:
    assert feed(["</end>"], ["a</", "b", "</en"]) == (["a", "</b", "", "</en"], None)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["two", "one"], "zero one two", ("zero ", "one")),
        (["cd", "bcd"], "abcd", ("a", "bcd")),
        (["abcd", "bc"], "abcd", ("a", "bc")),
        (["\n\n"], "a\n\n\nb", ("a", "\n\n")),
    ],
    ids=["first", "began first", "complete first", "overlap"],
)
def test_the_match_that_is_complete_first_wins(stops: list[str], text: str, expected: tuple[str, str]) -> None:
    for pieces in ([text], list(text)):
        shown, found = feed(stops, pieces)
        assert ("".join(shown), found) == expected


# With the tokens of an answer


class FakeModel:
    backend = TOKENIZER


def read(text: str, finish_reason: FinishReason | None = None, **changes: object) -> tuple[str, str | None, object]:
    """Text, finish reason and stop reason of an answer whose tokens are the bytes of `text`."""
    params = SamplingParams(**{"max_tokens": 99, "eos_token_ids": (258,), **changes})  # type: ignore[arg-type]
    reader = Reader(FakeModel(), [65], params, None)  # type: ignore[arg-type]
    tokens = TOKENIZER.encode(text, add_special_tokens=False).ids
    shown = ""
    for n, token in enumerate(tokens):
        last = n == len(tokens) - 1
        stop_reason = token if last and token in params.stop_token_ids else None
        piece = reader.read(
            Output(id="a", tokens=[token], finish_reason=finish_reason if last else None, stop_reason=stop_reason), 0
        )
        shown += piece.text
        if piece.finish_reason is not None:
            return shown, piece.finish_reason, piece.stop_reason
    return shown, None, None


def test_a_stop_string_ends_the_answer_and_is_reported() -> None:
    assert read("one. two.", stop=(". ",)) == ("one", "stop", ". ")


def test_stop_strings_are_looked_for_only_behind_min_tokens() -> None:
    assert read("a.b.c", stop=(".",), min_tokens=2) == ("a.b", "stop", ".")
    assert read("a.b.c", stop=(".",), min_tokens=1) == ("a", "stop", ".")


def test_held_text_comes_with_the_end_of_the_answer() -> None:
    assert read("one<", FinishReason.LENGTH, stop=("<end>",)) == ("one<", "length", None)


def test_an_incomplete_character_comes_with_the_end_of_the_answer() -> None:
    tokens = TOKENIZER.encode("中", add_special_tokens=False).ids[:2]
    reader = Reader(FakeModel(), [65], SamplingParams(max_tokens=2), None)  # type: ignore[arg-type]
    assert reader.read(Output(id="a", tokens=tokens, finish_reason=FinishReason.LENGTH), 0).text == "\ufffd"


def test_end_and_stop_tokens_are_not_shown_but_are_where_they_end_nothing() -> None:
    assert read("one<|im_end|>", FinishReason.STOP) == ("one", "stop", None)
    (token,) = TOKENIZER.encode("e", add_special_tokens=False).ids
    assert read("one", FinishReason.STOP, stop_token_ids=(token,)) == ("on", "stop", token)
    assert read("one", FinishReason.LENGTH) == ("one", "length", None)
