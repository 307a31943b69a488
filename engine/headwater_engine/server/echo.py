"""Where each token of a text completion begins in its text, and the prompt as the client sees it again."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer

from headwater_engine.server.detokenizer import Detokenizer, TokenText


@dataclass(frozen=True, slots=True)
class Echo:
    """Of one prompt, before all its answers."""

    text: str = ""
    offsets: tuple[int, ...] = ()
    """Of each of its tokens, in characters."""


def echo_of_text(tokenizer: Tokenizer, text: str, tokens: Sequence[int], *, added: bool) -> Echo:
    """`text`, to the letter, and where its `tokens` begin in it.

    `added`: the tokenizer has put tokens before it, such as a BOS, which are no part of it and have no length. Costs
    time for each token.
    """
    first = tokenizer.num_special_tokens_to_add(False) if added else 0
    pieces = Pieces(tokenizer, [], TokenText(tokenizer))
    offsets, at = [], 0
    for index, token in enumerate(tokens):
        offsets.append(min(at, len(text)))
        piece = pieces.of(token, shown=index >= first)
        # Some tokenizers put a space behind a special token, too.
        at += len(piece if text.startswith(piece, at) else piece.removeprefix(" "))
    return Echo(text, tuple(offsets))


def echo_of_tokens(tokenizer: Tokenizer, tokens: Sequence[int]) -> Echo:
    """Their text, without special tokens, and where each begins in it. Costs time for each token."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    pieces = Pieces(tokenizer, [], TokenText(tokenizer))
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(pieces.of(token))
    return Echo(text, tuple(offsets))


class Pieces:
    """What each token of one text adds to it."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], text_of: TokenText, *, skip_special_tokens: bool = True
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip_special_tokens)
        self._text_of = text_of
        self._special = _special_tokens(tokenizer) if skip_special_tokens else frozenset()

    def of(self, token: int, *, shown: bool = False) -> str:
        """`shown`: also where it is special. A character in several tokens comes with the last of them."""
        if token in self._special:
            return self._text_of(token)[0] if shown else ""
        return self._detokenizer.add(token)


@lru_cache(maxsize=1)
def _special_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special)
