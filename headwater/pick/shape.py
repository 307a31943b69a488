"""The shape of a model: what decides how many bytes its weights and its KV cache take, and how fast it can be."""

from dataclasses import dataclass
from typing import Final

CHUNK: Final = 2048
"""Tokens of a prompt that a server computes in one step, and so keeps beside the window of a sliding layer."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What each of some layers keeps of the tokens of a request."""

    layers: int
    heads: int
    """KV heads, which GPUs can share; 1 for a latent, which each GPU keeps whole."""
    width: float
    """Elements of one head: its key and its value, or its part of a latent."""
    window: int | None = None
    """Tokens of which they are kept; None: all."""

    @property
    def elements(self) -> float:
        """Of one token, over all these layers."""
        return self.layers * self.heads * self.width

    def copies(self, tensor: int) -> float:
        """How often a token is kept when `tensor` GPUs share a layer: a head that cannot be cut is on several."""
        return max(1.0, tensor / self.heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    name: str
    family: str | None
    parameters: float
    """All of them, also of experts that a token does not use."""
    active: float
    """Those that compute one token."""
    embedding: float
    """Parameters of the embedding and the output head, which quantization leaves in 16 bits."""
    experts: float = 0.0
    """Parameters of the experts among which a token is routed; 0: there are none."""
    expert_width: int = 0
    """Rows of one expert's inner matrix."""
    expert_count: int = 0
    experts_used: int = 0
    """Of one layer, by one token."""
    layers: int
    hidden: int
    """Elements of a token between layers."""
    heads: int
    """Attention heads, which GPUs share evenly or not at all."""
    vocabulary: int = 128_000
    """Where nothing says it: as many as most have."""
    kept: tuple[Kept, ...]
    state: float = 0.0
    """Elements that layers with linear attention keep of a request, however long it is."""
    positions: int | None
    """Tokens of prompt and output that the model was made for; None: not known."""
    vision: bool = False
    published: str = "none"
    """How its own repository holds the weights: a name of `precision.PRECISIONS`."""
    hub: str | None = None
    """Where the weights are, as OWNER/NAME."""
    stored: float | None = None
    """Bytes of the checkpoint's tensors, where it was read; None: to be computed."""
    estimated: bool = False
    source: str | None = None
    """What says so; None: nothing but the size."""

    @property
    def kv_heads(self) -> int:
        return max((each.heads for each in self.kept), default=1)

    @property
    def kv_elements(self) -> float:
        """What each further token of a long request leaves in the cache, over all layers."""
        return sum(each.elements for each in self.kept if each.window is None)

    def token_elements(self, tensor: int) -> float:
        """The same over `tensor` GPUs, with copies."""
        return sum(each.elements * each.copies(tensor) for each in self.kept if each.window is None)

    def fixed_elements(self, tensor: int, tokens: int) -> float:
        """What a request of so many tokens takes besides: the windows of sliding layers, and states."""
        windows = (
            each.elements * each.copies(tensor) * min(tokens, each.window + CHUNK)
            for each in self.kept
            if each.window is not None
        )
        return sum(windows) + self.state

    def divides(self, tensor: int) -> bool:
        """Whether servers can spread the attention over so many GPUs."""
        if self.heads % tensor:
            return False
        return all(each.heads % tensor == 0 or tensor % each.heads == 0 for each in self.kept)


def size_text(parameters: float) -> str:
    """`70.6B`, `135M`."""
    if parameters < 1e9:
        return f"{parameters / 1e6:,.0f}M"
    return f"{parameters / 1e9:,.1f}B"
