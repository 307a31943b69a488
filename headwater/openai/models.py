"""/v1/models: what is served here, and under which names."""

from msgspec import UNSET, Struct, UnsetType


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
    ready: bool | UnsetType = UNSET
    """Extension, of the router: whether an engine takes requests for it now. An engine that answers does."""


class ModelList(Struct, tag_field="object", tag="list"):
    data: list[ModelCard]
