"""/v1/completions: a text in, its continuation out."""

from typing import Annotated, Any, cast

from msgspec import UNSET, Struct, UnsetType
from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from headwater.openai.request import MAX_TOKEN_ID, Integer, SamplingRequest
from headwater.openai.unsupported import Unsupported, only
from headwater.openai.usage import Usage
from headwater.validation import found

# Request

Prompt = str | list[str] | list[int] | list[list[int]]


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each <= MAX_TOKEN_ID for each in value)


def read_prompt(value: Any) -> Prompt:
    match value:
        case str():
            return value
        case []:
            raise ValueError("must not be an empty list")
        case [str(), *_] if all(isinstance(each, str) for each in value):
            return cast("list[str]", value)
        case [int(), *_] if _is_token_ids(value):
            return cast("list[int]", value)
        case [list(), *_] if all(_is_token_ids(each) for each in value):
            if not all(value):
                raise ValueError("must not hold an empty list")
            return cast("list[list[int]]", value)
        case _:
            raise ValueError(
                "must be a string, a list of strings, a list of token ids, or a list of lists of token ids, "
                f"found {found(value)}"
            )


def prompts_of(prompt: Prompt) -> list[str] | list[list[int]]:
    """One entry for each prompt."""
    match prompt:
        case str():
            return [prompt]
        case [int(), *_]:
            return [cast("list[int]", prompt)]
        case _:
            return cast("list[str] | list[list[int]]", prompt)


class CompletionRequest(SamplingRequest, Unsupported):
    prompt: Annotated[Prompt, PlainValidator(read_prompt)]
    echo: bool = False
    """The answer begins with the prompt."""
    max_tokens: Integer | None = Field(None, ge=0)
    """Default: 16, or what the context leaves. 0 under `echo`: the prompt alone, with its log-probabilities."""
    logprobs: Integer | None = Field(None, ge=0, le=20)
    best_of: Integer | None = None
    suffix: str | None = None
    prompt_embeds: Annotated[Any, only([])] = None
    thinking_token_budget: Annotated[Any, only()] = None
    add_special_tokens: bool = True

    @field_validator("best_of")
    @classmethod
    def only_as_many_as_n(cls, value: int, info: ValidationInfo) -> int:
        if value != info.data.get("n", value):
            raise ValueError(f"must equal `n`, which is {info.data['n']}, found {value}")
        return value

    @field_validator("suffix")
    @classmethod
    def no_insertion(cls, value: str) -> None:
        if value:
            raise ValueError("is not supported: text is only continued, not inserted")

    @property
    def echo_only(self) -> bool:
        """Whether nothing but the prompt is asked for."""
        return self.echo and self.max_tokens == 0

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry for each prompt of the request."""
        return prompts_of(self.prompt)


# Answer


class CompletionLogprobs(Struct, kw_only=True):
    """One entry a token; the first prompt token of an echo has no logprob."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct, kw_only=True, omit_defaults=True):
    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None
    stop_reason: int | str | None = None
    """The stop string or stop token that ended it, where one did."""


class Completion(Struct, kw_only=True, omit_defaults=True, tag_field="object", tag="text_completion"):
    """The whole answer, or one event of a stream: they have the same shape."""

    id: str
    created: int
    """Seconds since the epoch."""
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    """Null in all events before, where there will be one."""
    system_fingerprint: str | None = None
