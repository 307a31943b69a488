"""/v1/models: what is served here, and under which names."""

from msgspec import Struct


class ModelCard(Struct, kw_only=True, tag_field="object", tag="model"):
    id: str
    created: int
    """Seconds since the epoch."""
    owned_by: str = "headwater"
    root: str | None = None
    """Where the weights come from."""
    parent: str | None = None
    """The base model of an adapter."""
    max_model_len: int | None = None
    """Prompt and output tokens of one request, together."""


class ModelList(Struct, tag_field="object", tag="list"):
    data: list[ModelCard]
