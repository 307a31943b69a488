"""Text out of tokens, one at a time, never a part of a character.

A token may hold only some bytes of a character, and some decoders treat the first token of a text in a way of their own
(a space before it is dropped). So a token is decoded behind a few tokens before it, and what it adds is the difference,
once that ends in a whole character. (The method of Hugging Face's text-generation-inference.) Where tokens are bytes,
whatever stands around them, as in most vocabularies, one that is whole characters is not decoded again.
"""

from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

_CONTEXT = 6
"""Tokens of the prompt that the first output token is decoded behind."""
_LONGEST_CHARACTER = 8
"""Tokens after which an incomplete character is taken for what it looks like: invalid bytes."""


class Detokenizer:
    """Of one answer. What `add` and `flush` return, joined, is the text of the output tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._tokens = list(prompt[-_CONTEXT:])
        self._settled = len(self._tokens)
        """Tokens whose text is out, all of it."""
        self._context = self._decode(self._tokens)
        """What the text of all tokens begins with and is out."""
        self._adds_up = isinstance(tokenizer.decoder, ByteLevel)
        """Whether a token stands for the same bytes whatever is before it."""

    def add(self, token: int) -> str:
        """The text that can be shown now; often that of this token, sometimes none, sometimes of several."""
        if self._adds_up and len(self._tokens) == self._settled:
            alone = _alone(self._tokenizer, token, self._skip_special_tokens)
            if alone and "\ufffd" not in alone:
                self._tokens, self._settled, self._context = [token], 1, alone
                return alone
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if not text.endswith("\ufffd"):
            return self._settle(text)
        if len(self._tokens) - self._settled < _LONGEST_CHARACTER:
            return ""
        return self._give_up(text)

    def flush(self) -> str:
        """What is left at the end: an incomplete character, as replacement characters."""
        if len(self._tokens) == self._settled:
            return ""
        return self._settle(self._decode(self._tokens))

    def _settle(self, text: str) -> str:
        """Show all of `text`; the tokens just shown are the next ones' context."""
        new = self._behind_context(text)
        if new:
            shown = self._tokens[self._settled :]
            single = len(shown) == 1
            context = _alone(self._tokenizer, shown[0], self._skip_special_tokens) if single else self._decode(shown)
            if "\ufffd" in context and "\ufffd" not in new:
                # They complete a character that began before them, and without it are no context for what follows.
                shown, context = self._tokens, text
            self._tokens, self._context = shown, context
        else:
            # Special tokens have no text, and would be no context.
            del self._tokens[self._settled :]
        self._settled = len(self._tokens)
        return new

    def _give_up(self, text: str) -> str:
        """Show invalid bytes as what they are, but not yet the last ones: a character may begin there."""
        new = self._behind_context(text[:-1])
        self._tokens = self._tokens[-_LONGEST_CHARACTER // 2 :]
        self._settled = 0
        self._context = self._decode(self._tokens)[:-1]
        return new

    def _behind_context(self, text: str) -> str:
        known = len(self._context)
        while not text.startswith(self._context[:known]):
            # The prompt ended within a character: U+FFFD in the context, one or one for each byte, is complete now.
            known -= 1
        return text[known:]

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip_special_tokens) if tokens else ""


@lru_cache(maxsize=2**16)
def _alone(tokenizer: Tokenizer, token: int, skip_special_tokens: bool) -> str:
    """The same tokens come again and again."""
    return str(tokenizer.decode([token], skip_special_tokens=skip_special_tokens))


class TokenText:
    """Single tokens as text and bytes, for log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}
        self._before = self._letter()

    def __call__(self, token: int) -> tuple[str, list[int]]:
        """The token's text within another one, with U+FFFD for what is not a whole character, and its bytes."""
        if token not in self._known:
            text = self._decode([*self._before, token])[len(self._before) :]
            self._known[token] = text, list(self._bytes(token, text))
        return self._known[token]

    def _letter(self) -> list[int]:
        """A token of one letter to stand before the one that is read: some decoders drop a space at the beginning."""
        letter = self._tokenizer.token_to_id("a")
        return [letter] if letter is not None and self._decode([letter] * 3) == "aaa" else []

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def _bytes(self, token: int, text: str) -> bytes:
        if "\ufffd" not in text:
            return text.encode()
        piece = self._tokenizer.id_to_token(token) or ""
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        if all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return text.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, which byte-level tokenizers spell their tokens in."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
