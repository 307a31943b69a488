"""Paths that clients know from OpenAI or other servers, and that nobody here answers: what is missing, in words."""

from collections.abc import Mapping
from typing import Final

_ABSENT: Final[Mapping[str, str]] = {
    "/classify": "classification",
    "/collective_rpc": "calls of its workers",
    "/inference": "generation from tokens",
    "/invocations": "API of SageMaker; /v1/chat/completions is asked instead",
    "/load": "load to be read there; /metrics tells it",
    "/pooling": "pooling",
    "/ping": "API of SageMaker; /health is asked instead",
    "/reset_prefix_cache": "way to empty its prefix cache",
    "/server_info": "settings to be read there; /version and /metrics are",
    "/sleep": "sleep",
    "/v1/assistants": "assistants; /v1/responses keeps conversations",
    "/v1/audio": "audio at that path",
    "/v1/batches": "batches",
    "/v1/chat/completions/render": "rendering of chats; /tokenize tells their tokens",
    "/v1/chatkit": "ChatKit",
    "/v1/completions/render": "rendering of prompts; /tokenize tells their tokens",
    "/v1/containers": "containers",
    "/v1/conversations": "conversations; `previous_response_id` of /v1/responses goes on with one",
    "/v1/evals": "evals",
    "/v1/files": "files",
    "/v1/fine_tuning": "fine-tuning",
    "/v1/images": "images",
    "/v1/messages/batches": "batches",
    "/v1/moderations": "moderations",
    "/v1/organization": "organizations",
    "/v1/realtime": "realtime sessions",
    "/v1/threads": "threads; /v1/responses keeps conversations",
    "/v1/uploads": "uploads",
    "/v1/vector_stores": "vector stores",
    "/v1/videos": "videos",
    "/wake_up": "sleep",
}
_ADAPTERS: Final = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_OTHERS: Final[Mapping[str, str]] = {
    "/api/chat": "/v1/chat/completions",
    "/api/embed": "/v1/embeddings",
    "/api/generate": "/v1/completions",
    "/api/tags": "/v1/models",
    "/completion": "/v1/completions",
    "/generate": "/v1/completions",
    "/generate_stream": "/v1/completions",
}
"""Of servers with an API of their own (Ollama, llama.cpp, TGI, SGLang), and where the same is asked for here."""


def absence(path: str, who: str) -> str | None:
    """What is said of a path, in a sentence; None: nobody knows it. `who`: "engine" or "router"."""
    if path in _ADAPTERS:
        later = {"engine": "they come later", "router": "`spec.adapters` of a ModelDeployment names them"}
        return f"This {who} loads no LoRA adapters: {later[who]}."
    if path in _OTHERS:
        return f"This {who} has OpenAI's API, not that of {path}; did you mean {_OTHERS[path]}?"
    parts = path.split("/")
    begins = ("/".join(parts[:end]) for end in range(len(parts), 1, -1))
    found = next((_ABSENT[each] for each in begins if each in _ABSENT), None)
    return None if found is None else f"This {who} has no {found}."
