"""/tokenize and /detokenize, in the shapes of vLLM's: what a prompt is to the model."""

from msgspec import Struct
from pydantic import Field, ValidationInfo, field_validator

from headwater.openai.chat import Conversation, Message
from headwater.openai.request import RequestModel, TokenId


class TokenizeRequest(Conversation):
    """Either `prompt`, or `messages` and what goes with them."""

    model: str | None = None
    messages: list[Message] = Field([])
    prompt: str | None = Field(None, validate_default=True)
    add_special_tokens: bool = Field(default_factory=lambda data: data.get("prompt") is not None)
    """Default: yes for a prompt, no for messages, whose template writes them."""
    return_token_strs: bool = False

    @field_validator("prompt")
    @classmethod
    def either_prompt_or_messages(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) != bool(info.data.get("messages", True)):
            raise ValueError("give either `prompt` or `messages`")
        return value


class TokenizeAnswer(Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: list[TokenId]


class DetokenizeAnswer(Struct):
    prompt: str
