"""The inference servers that Headwater runs and routes to, one file each; `get` finds one by its name."""

from functools import cache

from headwater.backends.base import Backend
from headwater.backends.headwater import Headwater
from headwater.backends.sglang import SGLang
from headwater.backends.tensorrt_llm import TensorRTLLM
from headwater.backends.tgi import TGI
from headwater.backends.transformers import Transformers
from headwater.backends.vllm import VLLM

_BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (Headwater(), VLLM(), SGLang(), TGI(), TensorRTLLM(), Transformers())
}


class UnknownBackendError(ValueError):
    """There is no backend of this name; the message lists those there are."""


def names() -> list[str]:
    return sorted(_BACKENDS)


@cache
def get(name: str) -> Backend:
    """The backend of this name; "auto" is our own engine. Raises UnknownBackendError."""
    try:
        return _BACKENDS["headwater" if name == "auto" else name]
    except KeyError:
        raise UnknownBackendError(f"no backend {name!r}; there are: {', '.join(names())}") from None
