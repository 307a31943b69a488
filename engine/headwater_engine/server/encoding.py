"""From the text of a prompt to token ids, special tokens that a client wrote in a message being text."""

import re
import secrets
from collections.abc import Collection

from tokenizers import AddedToken, Tokenizer

from headwater.openai.errors import BadRequestError
from headwater_engine.server.special_tokens import BREAK


class PromptEncoder:
    """Thread-safe. A prompt without a BREAK is encoded as the tokenizer itself does.

    For one with a BREAK there is a second tokenizer, on the same model, to which special tokens have secret names. The
    template's are given these names, what the client wrote is left as it is, and so all else (how words are cut, spaces
    before them) is done in one go, as ever.
    """

    def __init__(self, tokenizer: Tokenizer, control_tokens: Collection[str]) -> None:
        self._tokenizer = tokenizer
        self._secret = secrets.token_hex(8)
        longest_first = sorted(control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._second, self._ids = self._make_second(set(control_tokens))
        # Those that the model makes of text by itself.
        self._unwritable = {_id(tokenizer, token) for token in control_tokens} - self._ids.keys()
        letter = tokenizer.encode("a")
        mask = [*letter.special_tokens_mask, 0]
        at = mask.index(0)
        self._before, self._after = letter.ids[:at], letter.ids[letter.special_tokens_mask.count(0) + at :]

    def __call__(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Raises BadRequestError where the tokenizer has no way to write a special token as text."""
        # A batch, even of one, is encoded without the interpreter's lock.
        if BREAK not in text:
            return list(self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids)
        named = self._control.sub(lambda token: self._name(token[0]), text).replace(BREAK, "")
        tokens = self._second.encode_batch([named], add_special_tokens=False)[0].ids
        if not self._unwritable.isdisjoint(tokens):
            raise BadRequestError(
                "A message holds a special token that this model cannot read as text.", param="messages"
            )
        tokens = [self._ids.get(token, token) for token in tokens]
        return [*self._before, *tokens, *self._after] if add_special_tokens else tokens

    def _name(self, token: str) -> str:
        return token[0] + self._secret + token[1:]

    def _make_second(self, control_tokens: set[str]) -> tuple[Tokenizer, dict[int, int]]:
        """The second tokenizer, and the ids of its added tokens as those of the first."""
        second = Tokenizer(self._tokenizer.model)
        for part in ("normalizer", "pre_tokenizer"):
            if (value := getattr(self._tokenizer, part)) is not None:
                setattr(second, part, value)
        added = self._tokenizer.get_added_tokens_decoder()
        names = {
            token: self._name(each.content) if each.content in control_tokens else each.content
            for token, each in added.items()
        }
        second.add_tokens(
            [
                AddedToken(
                    names[token],
                    single_word=each.single_word,
                    lstrip=each.lstrip,
                    rstrip=each.rstrip,
                    normalized=each.normalized,
                    special=each.special,
                )
                for token, each in added.items()
            ]
        )
        return second, {_id(second, name): token for token, name in names.items()}


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, "it was added"
    return found
