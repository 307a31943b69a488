"""What a request cost, in tokens."""

from typing import Self

from msgspec import Struct


class PromptTokensDetails(Struct):
    cached_tokens: int
    """Prompt tokens whose KV blocks were there already. Always said: the router learns from it."""


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class Usage(Struct, kw_only=True, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(cls, *, prompt: int, completion: int, cached: int, reasoning: int | None = None) -> Self:
        """`reasoning`: None where the model does none."""
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached),
            completion_tokens_details=None if reasoning is None else CompletionTokensDetails(reasoning),
        )
