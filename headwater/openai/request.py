"""What the bodies of all requests have in common: how they are parsed, and the fields that steer sampling."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from headwater.openai.errors import from_validation_error
from headwater.validation import field_path, finding, found

MAX_TOKEN_ID = 2**31 - 1


def _whole(value: Any) -> Any:
    """Some clients' languages have one kind of number: 1.0 is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole), Field(ge=-(2**63), le=2**63 - 1)]
"""What a message to the engine can hold."""
TokenId = Annotated[Integer, Field(ge=0, le=MAX_TOKEN_ID)]


class RequestModel(BaseModel):
    """A body, or a part of one. Unknown fields are kept; null is "not given"; numbers are not read out of strings."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict) and None in data.values():
            return {name: value for name, value in data.items() if value is not None}
        return data

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read JSON. Raises BadRequestError, which names the first wrong field."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise from_validation_error(error) from None


class StreamOptions(RequestModel):
    include_usage: bool = False
    """Send the usage in a last chunk of its own."""
    continuous_usage_stats: bool = False
    """Send the usage so far in each chunk, too."""


def one_as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


MOST_TOKENS_NAMED: Final = 4096
"""Tokens that a request may name one by one, of those that each step of an engine looks at, for all who are in it."""


def _read_logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object of token ids and biases, found {found(value)}")
    if len(value) > MOST_TOKENS_NAMED:
        raise ValueError(f"must have at most {MOST_TOKENS_NAMED} tokens, found {len(value)}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        token = str(key)
        if not (token.isascii() and token.isdecimal() and len(token) <= 10 and int(token) <= MAX_TOKEN_ID):
            raise ValueError(f"its keys must be token ids as strings, found {found(token)}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"its values must be numbers from -100 to 100, found {found(bias)} for token {token}")
        biases[int(token)] = float(bias)
    return biases


class Sampling(RequestModel):
    """What chooses each token. None: not given, so a default holds: the server's, the model's, or the API's."""

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: Integer | None = Field(None, ge=-1)
    """-1 and 0: off."""
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, allow_inf_nan=False)


class SamplingDefaults(Sampling):
    """Values for requests that give none, under the names of transformers' generation_config.json, and vLLM's."""

    model_config = ConfigDict(extra="forbid")

    max_new_tokens: Integer | None = Field(None, ge=1)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Raises ValueError, which names the field, also one that there is not."""
        if unknown := [name for name in values if name not in cls.model_fields]:
            close = difflib.get_close_matches(unknown[0], cls.model_fields, n=1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            raise ValueError(f"unknown field `{unknown[0]}`; {hint}allowed are {', '.join(cls.model_fields)}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            raise ValueError(f"`{field_path(detail['loc'])}` {finding(detail)}") from None


class SamplingRequest(Sampling):
    """The fields that chat and text completions share."""

    model: str | None = Field(None, min_length=1)
    """None: the one that is served."""
    stream: bool = False
    stream_options: StreamOptions | None = None

    n: Integer = Field(1, ge=1, le=128)
    max_tokens: Integer | None = Field(None, ge=1)
    min_tokens: Integer = Field(0, ge=0)
    seed: Integer | None = None
    logit_bias: Annotated[dict[int, float], PlainValidator(_read_logit_bias)] = {}
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(one_as_list), Field(max_length=16)] = []
    """Always a list, also where the client sent one string."""
    stop_token_ids: list[TokenId] = Field([], max_length=MOST_TOKENS_NAMED)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1)
    skip_special_tokens: bool = True
    """Special tokens are not in the text of the answer."""
    truncate_prompt_tokens: Integer | None = Field(None, ge=-1)
    """Tokens of a prompt at most; the rest is cut off. -1: what the context leaves beside the answer."""
    truncation_side: Literal["left", "right"] = "left"
    """left: the last tokens are kept."""

    response_format: dict[str, Any] | None = None
    """This, or one of the fields behind it: the form of the answer, which `openai.constraint` reads."""
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | None = None

    user: str | None = None
    metadata: dict[str, Any] = {}
    priority: Integer = Field(0, ge=-(2**31), le=2**31 - 1)
    """Lower runs first."""
    cache_salt: str | None = Field(None, min_length=1)
    """Cached prompts are shared only between requests of the same salt."""

    @field_validator("stream_options")
    @classmethod
    def only_for_streams(cls, value: StreamOptions, info: ValidationInfo) -> StreamOptions:
        if info.data.get("stream") is False:
            raise ValueError("is only allowed where `stream` is true")
        return value

    @field_validator("min_tokens")
    @classmethod
    def at_most_max_tokens(cls, value: int, info: ValidationInfo) -> int:
        limit = info.data.get("max_tokens")
        if limit is not None and value > limit:
            raise ValueError(f"must be at most `max_tokens`, which is {limit}, found {value}")
        return value

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def not_to_nothing(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1, or at least 1, found 0")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that holds the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of a stream says what was used so far; vLLM's, which wants `include_usage` for it."""
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats
