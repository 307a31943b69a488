"""Texts, alone or in pairs, as tokens for a model that makes vectors or scores of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from headwater.openai.errors import BadRequestError
from headwater.openai.vectors import TextsRequest
from headwater_engine.server.served_model import ServedModel

Text = str | list[int] | tuple[str, str]
"""What a prompt is made of: a text, or token ids, or two texts."""


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Of one request. Blocking, where texts are long."""

    model: ServedModel
    context: int
    """Tokens of a prompt at most."""
    request: TextsRequest
    add_special_tokens: bool = True

    def prompts(self, texts: Sequence[Text], field: str) -> Iterator[list[int]]:
        """Raises BadRequestError, which names `field`, for what has no tokens or too many."""
        for index, text in enumerate(texts):
            tokens = self._encode(text, field)
            where = f"`{field}`" if len(texts) == 1 else f"`{field}`, number {index},"
            if not tokens:
                raise BadRequestError(f"{where} has no tokens.", param=field)
            if len(tokens) > self.context:
                raise BadRequestError(
                    f"The prompt is too long: {where} has {len(tokens)} tokens. This model's maximum context length is "
                    f"{self.context} tokens. `truncate_prompt_tokens` -1 cuts off what is more.",
                    param=field,
                    code="context_length_exceeded",
                )
            yield tokens

    @property
    def _most(self) -> int | None:
        """Tokens that a prompt is cut to."""
        most = self.request.truncate_prompt_tokens
        return most if most is None else min(self.context, most) if most > 0 else self.context

    def _encode(self, text: Text, field: str) -> list[int]:
        if isinstance(text, list):
            self.model.check_tokens(text, field)
            return text if self._most is None else self._cut(text, self._most)
        texts = (text,) if isinstance(text, str) else text
        if self._most is None:
            for each in texts:
                self.model.check_length(each, self.context, field)
            encoding = self._whole(text)
        else:
            encoding = self._fitted(texts, self._most)
        return self.model.told_apart(encoding)

    def _cut(self, tokens: list[int], most: int) -> list[int]:
        return tokens[:most] if self.request.truncation_side == "right" else tokens[-most:]

    def _whole(self, text: str | tuple[str, str]) -> Encoding:
        # A batch, even of one, is encoded without the interpreter's lock.
        return self._backend.encode_batch([text], add_special_tokens=self.add_special_tokens)[0]

    def _fitted(self, texts: Sequence[str], most: int) -> Encoding:
        """Cut so that special tokens have their places: the longer text of a pair first."""
        added = self._backend.num_special_tokens_to_add(len(texts) == 2) if self.add_special_tokens else 0
        if most - added < len(texts):
            raise BadRequestError(
                f"`truncate_prompt_tokens`: must be at least {added + len(texts)} for this model, found {most}.",
                param="truncate_prompt_tokens",
            )
        # What of a text could never count need not be tokenized.
        side, longest = self.request.truncation_side, self.model.longest_text(self.context)
        shown = [text[:longest] if side == "right" else text[-longest:] for text in texts]
        parts = self._backend.encode_batch(shown, add_special_tokens=False)
        for part, room in zip(parts, rooms([len(part.ids) for part in parts], most - added), strict=True):
            part.truncate(room, direction=side)
        second = parts[1] if len(parts) == 2 else None
        return self._backend.post_process(parts[0], pair=second, add_special_tokens=self.add_special_tokens)

    @property
    def _backend(self) -> Tokenizer:
        return self.model.backend


def rooms(lengths: Sequence[int], most: int) -> list[int]:
    """How many of `most` tokens each of one or two texts may have: the longer one loses first."""
    if len(lengths) == 1 or sum(lengths) <= most:
        return [most, most][: len(lengths)]
    short = min(min(lengths), most // 2)
    return [short, most - short] if lengths[0] <= lengths[1] else [most - short, short]
