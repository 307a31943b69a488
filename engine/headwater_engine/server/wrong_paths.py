"""What to say of a path at which there is nothing: clients are often set up with half of one, or with one too many."""

from collections.abc import Collection
from typing import Final

from headwater.openai.errors import NotFoundError

_OTHERS: Final = (
    *("/v1/audio", "/v1/images", "/v1/videos", "/v1/moderations", "/v1/realtime"),
    *("/v1/files", "/v1/uploads", "/v1/batches", "/v1/fine_tuning", "/v1/vector_stores"),
    *("/v1/assistants", "/v1/threads", "/v1/conversations", "/v1/responses", "/v1/messages"),
    *("/v1/embeddings", "/v1/rerank", "/v1/score", "/v2/rerank", "/rerank", "/score", "/pooling", "/classify"),
)
"""Of OpenAI's API and other servers', as far as an engine does not have them."""


def nothing_at(path: str, known: Collection[str]) -> NotFoundError:
    """`known`: the paths that there are."""
    for other in _OTHERS:
        if path == other or path.startswith(f"{other}/"):
            return NotFoundError(f"This engine has no {other}: it answers {_answered(known)}.")
    return NotFoundError.at(path, known)


def _answered(known: Collection[str]) -> str:
    return " and ".join(sorted(each for each in known if each.startswith("/v1/") and each != "/v1/models"))
