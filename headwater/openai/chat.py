"""/v1/chat/completions: a conversation in, the next message out."""

from typing import Annotated, Any, Final, Literal, Self

from msgspec import UNSET, Struct, UnsetType
from pydantic import (
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from headwater.openai.request import Integer, RequestModel, SamplingRequest
from headwater.openai.unsupported import UnsupportedInChat
from headwater.openai.usage import Usage
from headwater.validation import found

# Request


_TEXTS = ("text", "refusal")
"""Types of parts. `refusal` is what an assistant wrote instead of an answer."""


def _read_content(value: Any) -> str | list[dict[str, Any]] | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"must be a string or a list of text parts, found {found(value)}")
    for i, part in enumerate(value):
        if isinstance(part, dict) and isinstance(kind := part.get("type"), str) and kind not in _TEXTS:
            raise ValueError(f"part {i} is of type {kind!r}; only text is read, no image, sound or file")
        if not _is_text(part):
            raise ValueError(f'part {i} must be {{"type": "text", "text": "..."}}, found {found(part)}')
    return value


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXTS and isinstance(part.get(part["type"]), str)


class FunctionCall(RequestModel):
    name: str
    arguments: str | dict[str, Any] = ""
    """JSON; some clients leave it parsed."""


class ToolCall(RequestModel):
    id: str = ""
    function: FunctionCall


class Message(RequestModel):
    """One turn of a conversation. Fields of its own that a chat template may want (`name`) are kept."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | list[dict[str, Any]] | None, PlainValidator(_read_content)] = Field(
        None, validate_default=True
    )
    refusal: str | None = None
    tool_calls: list[ToolCall] = Field([])
    function_call: FunctionCall | None = None
    tool_call_id: str = ""
    name: str = ""

    @field_validator("content")
    @classmethod
    def needed_but_for_the_assistant(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("role", "assistant") != "assistant":
            raise ValueError(f"is required in a message of role {info.data['role']}")
        return value


_MOST_TOOLS: Final = 1024
"""A hundred bytes that name one become a rule of a grammar, a text of the prompt and a parser."""


class ToolFunction(RequestModel):
    model_config = ConfigDict(strict=False)  # it is read from what is parsed already

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, Any] = Field({})
    """A JSON schema."""
    strict: StrictBool = False


class Tool(RequestModel):
    model_config = ConfigDict(strict=False)

    type: Literal["function"] = "function"
    function: ToolFunction


_TOOLS: Final = TypeAdapter(list[Tool])


def _read_tools(value: Any) -> list[dict[str, Any]]:
    """As they came, for the template: it writes their members in the order in which they are."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list of functions, found {found(value)}")
    if len(value) > _MOST_TOOLS:
        raise ValueError(f"must be at most {_MOST_TOOLS} functions, found {len(value)}")
    names: set[str] = set()
    for tool in _TOOLS.validate_python(value):
        if tool.function.name in names:
            raise ValueError(f"must have names of their own, found {found(tool.function.name)} twice")
        names.add(tool.function.name)
    return value


class ToolChoice(Struct, frozen=True):
    """Whether functions are called, and which."""

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None
    """Only these; None: any of those that there are."""


def _read_tool_choice(value: Any) -> ToolChoice:
    match value:
        case "none" | "auto" | "required":
            return ToolChoice(value)
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice("required", (name,))
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools},
        }:
            return ToolChoice(mode, tuple(_name_of(tool) for tool in tools))
        case _:
            raise ValueError(
                'must be "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}, '
                f"found {found(value)}"
            )


def _name_of(tool: Any) -> str:
    match tool:
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
        case _:
            raise ValueError(
                f'must name functions as {{"type": "function", "function": {{"name": "..."}}}}, found {found(tool)}'
            )


RENDERING_ARGUMENTS = frozenset(
    (
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    )
)
"""Of `apply_chat_template` and what it calls. They choose the program that runs, or have fields of their own here."""


class Conversation(RequestModel):
    """What a chat template turns into a prompt."""

    messages: list[Message] = Field(min_length=1)
    tools: Annotated[list[dict[str, Any]] | None, PlainValidator(_read_tools)] = None
    chat_template_kwargs: dict[str, Any] = Field({})
    """Variables of the template."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    enable_thinking: bool | None = None
    continue_final_message: bool = False
    """The prompt ends within the last message, which the answer goes on writing."""
    add_generation_prompt: bool = Field(default_factory=lambda data: not data.get("continue_final_message"))
    """The prompt ends with the beginning of an assistant's message."""

    @property
    def template_variables(self) -> dict[str, Any]:
        """What was said of reasoning, under the names that templates have for it, and the variables themselves."""
        variables: dict[str, Any] = {}
        thinks = self.enable_thinking
        if self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
            thinks = self.reasoning_effort != "none" if thinks is None else thinks
        if thinks is not None:
            variables |= {"enable_thinking": thinks, "thinking": thinks}
        return variables | self.chat_template_kwargs

    @field_validator("chat_template_kwargs")
    @classmethod
    def only_variables(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(value.keys() & RENDERING_ARGUMENTS):
            raise ValueError(
                f"cannot set {', '.join(f'`{name}`' for name in taken)}, which is not a variable of the template"
            )
        return value

    @field_validator("add_generation_prompt")
    @classmethod
    def not_with_continue(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("continue_final_message"):
            raise ValueError("cannot be true together with `continue_final_message`")
        return value


class ChatCompletionRequest(SamplingRequest, Conversation, UnsupportedInChat):
    add_special_tokens: bool = False
    """Besides those that the template writes."""
    max_completion_tokens: Integer | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Integer = Field(0, ge=0, le=20)
    tool_choice: Annotated[ToolChoice, PlainValidator(_read_tool_choice)] = ToolChoice("auto")
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    """Whether reasoning is in the answer."""
    thinking_token_budget: Integer | None = Field(None, ge=0)
    """Tokens of reasoning at most."""

    @field_validator("top_logprobs")
    @classmethod
    def only_with_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("logprobs") is False:
            raise ValueError("is only allowed where `logprobs` is true")
        return value

    @field_validator("max_completion_tokens")
    @classmethod
    def at_least_min_tokens(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("min_tokens", 0):
            raise ValueError(f"must be at least `min_tokens`, which is {info.data['min_tokens']}, found {value}")
        return value

    @field_validator("tool_choice")
    @classmethod
    def of_tools_that_there_are(cls, value: ToolChoice, info: ValidationInfo) -> ToolChoice:
        if "tools" not in info.data:  # they are wrong themselves
            return value
        names = {tool["function"]["name"] for tool in info.data["tools"] or ()}
        if value.mode == "required" and not names:
            raise ValueError("is only allowed where there are `tools`")
        if unknown := sorted(set(value.names or ()) - names):
            raise ValueError(f"must name some of `tools`, found {found(unknown[0])}")
        return value

    @property
    def callable_tools(self) -> list[dict[str, Any]]:
        """Those that may be called."""
        choice = self.tool_choice
        return [
            tool
            for tool in self.tools or ()
            if choice.mode != "none" and (choice.names is None or tool["function"]["name"] in choice.names)
        ]

    @model_validator(mode="after")
    def no_tools_where_none_may_be_called(self) -> Self:
        if self.tool_choice.mode == "none":
            self.tools = None
        return self

    @property
    def output_limit(self) -> int | None:
        """Output tokens at most: `max_completion_tokens`, or the older `max_tokens`; None: what the context leaves."""
        return self.max_completion_tokens or self.max_tokens


# Answer


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Struct):
    content: list[TokenLogprob]
    """Of all tokens, also those of reasoning and calls."""
    refusal: list[TokenLogprob] | None = None


class CalledFunction(Struct, kw_only=True, omit_defaults=True):
    name: str | None = None
    arguments: str
    """JSON, or the beginning of it."""


class AnswerToolCall(Struct, kw_only=True, omit_defaults=True):
    """In a stream, what comes behind the first of a call has neither `id` nor name, and more of the arguments."""

    index: int | None = None
    """In a stream only."""
    id: str | None = None
    type: str | None = None
    function: CalledFunction


class AnswerMessage(Struct, kw_only=True, omit_defaults=True):
    role: str
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    tool_calls: list[AnswerToolCall] | None = None


class Choice(Struct, kw_only=True, omit_defaults=True):
    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: ChoiceLogprobs | None
    stop_reason: int | str | None = None
    """The stop string or stop token that ended it, where one did."""


class ChatCompletion(Struct, kw_only=True, omit_defaults=True, tag_field="object", tag="chat.completion"):
    id: str
    created: int
    """Seconds since the epoch."""
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = None


class Delta(Struct, kw_only=True, omit_defaults=True):
    role: str | None = None
    content: str | UnsetType | None = UNSET
    """Null at the beginning of a message that only calls."""
    reasoning_content: str | None = None
    tool_calls: list[AnswerToolCall] | None = None


class ChunkChoice(Struct, kw_only=True, omit_defaults=True):
    index: int
    delta: Delta
    finish_reason: str | None
    logprobs: ChoiceLogprobs | None = None
    stop_reason: int | str | None = None


class ChatCompletionChunk(Struct, kw_only=True, omit_defaults=True, tag_field="object", tag="chat.completion.chunk"):
    """One event of a stream. The one with the usage has no choices."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    """Null in all chunks before, where there will be one."""
    system_fingerprint: str | None = None
