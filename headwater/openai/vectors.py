"""/v1/embeddings, /v1/score and /v1/rerank: texts in, vectors or numbers out. The last two are in vLLM's shapes."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType
from pydantic import BeforeValidator, Field, PlainValidator, field_validator

from headwater.openai.completions import Prompt, prompts_of, read_prompt
from headwater.openai.request import Integer, RequestModel, one_as_list
from headwater.openai.unsupported import only
from headwater.openai.usage import PromptTokensDetails
from headwater.validation import found

# Requests


class TextsRequest(RequestModel):
    """What they have in common."""

    model: str | None = Field(None, min_length=1)
    truncate_prompt_tokens: Integer | None = Field(None, ge=-1)
    """Tokens of a prompt at most; the rest of its text is cut off. -1: what the model can take."""
    truncation_side: Literal["left", "right"] = "right"
    """right: the first tokens are kept."""
    priority: Integer = Field(0, ge=-(2**31), le=2**31 - 1)
    cache_salt: str | None = Field(None, min_length=1)
    user: str | None = None

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def not_to_nothing(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1, or at least 1, found 0")
        return value


class EmbeddingRequest(TextsRequest):
    input: Annotated[Prompt, PlainValidator(read_prompt)]
    dimensions: Integer | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"
    add_special_tokens: bool = True
    normalize: bool | None = None
    """Whether vectors have the length 1; as the model's folder says where it is not given."""
    messages: Annotated[Any, only()] = None
    use_activation: Annotated[Any, only()] = None
    embed_dtype: Annotated[Any, only("float32")] = None
    endianness: Annotated[Any, only("native", "little")] = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        return prompts_of(self.input)


Texts = Annotated[list[str], BeforeValidator(one_as_list), Field(min_length=1)]


class ScoreRequest(TextsRequest):
    text_1: Texts
    """One, or as many as `text_2`."""
    text_2: Texts

    @field_validator("text_2")
    @classmethod
    def beside_the_first(cls, value: list[str], info: Any) -> list[str]:
        count = len(info.data.get("text_1", value))
        if count not in (1, len(value)):
            raise ValueError(f"must have as many texts as `text_1`, which are {count}, found {len(value)}")
        return value

    @property
    def pairs(self) -> list[tuple[str, str]]:
        first = self.text_1 * len(self.text_2) if len(self.text_1) == 1 else self.text_1
        return list(zip(first, self.text_2, strict=True))


def _read_document(value: Any) -> str:
    match value:
        case str() | {"text": str()}:
            return value if isinstance(value, str) else value["text"]
        case _:
            raise ValueError(f'must be text, or {{"text": "..."}}, found {found(value)}')


class RerankRequest(TextsRequest):
    query: str
    documents: list[Annotated[str, PlainValidator(_read_document)]] = Field(min_length=1)
    top_n: Integer | None = Field(None, ge=0)
    """Results at most; 0: all, as in vLLM."""
    return_documents: bool = True
    max_tokens_per_doc: Annotated[Any, only()] = None
    max_chunks_per_doc: Annotated[Any, only()] = None
    rank_fields: Annotated[Any, only()] = None


# Answers


class TextsUsage(Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, tokens: int, cached: int) -> "TextsUsage":
        return cls(prompt_tokens=tokens, total_tokens=tokens, prompt_tokens_details=PromptTokensDetails(cached))


class Embedding(Struct, kw_only=True, tag_field="object", tag="embedding"):
    index: int
    embedding: list[float] | str
    """Numbers, or those as float32, little-endian, in base64."""


class EmbeddingList(Struct, kw_only=True, tag_field="object", tag="list"):
    data: list[Embedding]
    model: str
    usage: TextsUsage


class Score(Struct, kw_only=True, tag_field="object", tag="score"):
    index: int
    score: float


class ScoreList(Struct, kw_only=True, tag_field="object", tag="list"):
    id: str
    created: int
    model: str
    data: list[Score]
    usage: TextsUsage


class Document(Struct):
    text: str


class Ranked(Struct, kw_only=True):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class Ranking(Struct, kw_only=True):
    id: str
    model: str
    results: list[Ranked]
    """The most relevant first."""
    usage: TextsUsage
