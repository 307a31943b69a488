"""What a model needs of the hardware: one protocol, implemented for each kind of device.

A step runs the model on a *flat batch*: the new tokens of all sequences behind one another, decode (one token a
sequence) and prefill chunks (many) alike. Attention is the only layer that knows about sequences and blocks, and all
that it knows stands in `AttentionBatch`. Keys and values live in `LayerCache`, whose layout is the implementation's own
business.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from headwater_engine.quantization.stored import StoredWeight

BLOCK_SIZE = 16
"""Tokens in one KV block."""
WEIGHT_ONE = 1 << 30
"""The weight that a row's likeliest token has for top-p and min-p; others weigh their share of it, as integers.

Sums of integers are the same in any order, so that all kernels keep the same tokens, to the last one."""


class CacheSpec(NamedTuple):
    """What one layer keeps of each token: its keys and values."""

    heads: int
    """Of keys, and of values."""
    key_dim: int
    value_dim: int


class LayerCache(NamedTuple):
    """The KV blocks of one layer. Only the `Kernels` that allocated it may read or write it."""

    keys: Tensor
    values: Tensor
    heads: int
    """Of keys, and of values."""
    value_dim: int
    """The values' own size, where the layout pads them."""


class SharedPrefixes(NamedTuple):
    """Beginnings of contexts that several sequences which decode have in common: kernels may read each once for all.

    A group of such sequences looks like one sequence. Its queries are the tokens that decode, its context is what they
    share. `kernels/prefixes.py` finds them. S is the batch's sequences; of P groups, the last ones may be empty.
    """

    members: Tensor
    """[S] int32: the sequences behind a shared prefix, group by group; what comes then says nothing."""
    starts: Tensor
    """[P + 1] int32: group p has `members[starts[p]:starts[p + 1]]`."""
    lengths: Tensor
    """[P] int32: tokens that they share, whole blocks."""
    skipped: Tensor
    """[S] int32: of each sequence, how many tokens from its beginning on are read with its group; 0: it is in none."""


@dataclass(slots=True)
class AttentionBatch:
    """Where each token of a flat batch stands: in which sequence, in which cache slot, behind which blocks.

    All tensors lie on the model's device. T tokens, S sequences; sequence s owns the tokens
    `query_starts[s]:query_starts[s + 1]`, which are the *last* ones of its `context_lengths[s]` tokens.
    """

    positions: Tensor
    """[T] int64: the token's position in its sequence."""
    slots: Tensor
    """[T] int64: block * BLOCK_SIZE + offset, where the token's key and value go."""
    block_tables: Tensor
    """[S, blocks of the longest] int32; behind those of a sequence's context stands anything."""
    query_starts: Tensor
    """[S + 1] int32."""
    context_lengths: Tensor
    """[S] int32: tokens with a key in the cache once this step has written its own."""
    longest_query: int
    """The most tokens that a sequence has here. The host's number, as the next one: to ask a GPU is to wait for it."""
    longest_context: int
    """The largest of `context_lengths`."""
    decodes: int = 0
    """How many sequences, the first ones, have one token each. The host's number, too; 0 is right for any."""
    prefixes: SharedPrefixes | None = None
    """Of those. None: none is known, or none is worth it. Results are the same with them, but for rounding."""
    plans: dict[Hashable, object] = field(default_factory=dict)
    """What kernels worked out of all this, by kinds of layers: theirs alone, and made once a step."""

    def only(self, rows: Tensor) -> "AttentionBatch":
        """The same with the queries of fewer tokens: `rows` [R] int64, ascending, each the last one of its sequence."""
        return replace(
            self,
            positions=self.positions[rows],
            slots=self.slots[rows],
            query_starts=torch.searchsorted(rows, self.query_starts, out_int32=True),
            longest_query=1,
            decodes=0,
            prefixes=None,
            plans={},
        )


class SeatTables(NamedTuple):
    """What the device keeps of the requests that run, by seat. The last seat is nobody's."""

    blocks: Tensor
    """[seats + 1, blocks of the longest] int32: where each has its keys and values."""
    last: Tensor
    """[seats + 1] int64: the token that was sampled last."""


class Told(NamedTuple):
    """What the host says of a step, all int32 and in one piece of memory.

    T tokens, S sequences, R rows of logits, N blocks that seats have got since.
    """

    tokens: Tensor
    """[T]; -1: the last one of the sequence's seat, which the host does not know yet."""
    owners: Tensor
    """[T]: which of the S sequences each is of."""
    seats: Tensor
    """[S]"""
    rows: Tensor
    """[2, R]: places among the T tokens, and the seats that sit there."""
    blocks: Tensor
    """[2, N]: places in `SeatTables.blocks`, counted row behind row, and what belongs there. No place twice."""


class FlatBatch(NamedTuple):
    """A step as the model takes it. All tensors lie on its device."""

    tokens: Tensor
    """[T] int64"""
    attention: AttentionBatch
    rows: Tensor
    """[R] int64: those among the T whose logits give tokens."""
    seats: Tensor
    """[R] int64: whose tokens these are."""


class Penalties(NamedTuple):
    """Of a batch's rows that ask for any."""

    counts: Tensor
    """[C, V] int32: of each token, twice how often it stands in an answer, and 1 more if it stands in its prompt."""
    rows: Tensor
    """[R] int32: each row's line of `counts`; -1: none, its numbers do nothing."""
    repetition: Tensor
    """[R] float32. Divides positive and multiplies negative logits of all tokens seen (Keskar et al., "CTRL")."""
    presence: Tensor
    """[R] float32. Subtracted from the logits of tokens in the answer."""
    frequency: Tensor
    """[R] float32. The same, once for each time they stand there."""


class Biases(NamedTuple):
    """N logits of a batch that are shifted by themselves, no logit twice."""

    places: Tensor
    """[N] int64, ascending: row * V + token."""
    values: Tensor
    """[N] float32, added after the penalties; -inf for tokens that must not come."""


class Masks(NamedTuple):
    """Of a batch's rows that may become some tokens only."""

    bits: Tensor
    """[M, words] int32, V bits or more: bit `token % 32` of word `token // 32` is 1 where the token may come."""
    rows: Tensor
    """[R] int32: each row's line of `bits`; -1: none, all may come."""


@dataclass(slots=True)
class SamplingBatch:
    """How rows of logits [R, V] become tokens. All tensors lie on the model's device. None: no row asks for it."""

    inverse_temperatures: Tensor
    """[R] float32; 0: greedy, the largest logit and no draw, and then the numbers below say nothing."""
    keys: Tensor
    """[2, R] int32: words that the noise of a row comes from (`sampling/noise.py`)."""
    top_k: Tensor
    """[R] int32, at least 1; V or more: off."""
    top_p: Tensor
    """[R] float32, 0 to 1; 1 or more: off."""
    min_weight: Tensor
    """[R] int32: min-p, as a share of WEIGHT_ONE; 0: off."""
    filters: bool
    """Whether any row has one of the three. The host's number: to ask a GPU is to wait for it."""
    penalties: Penalties | None
    masks: Masks | None
    biases: Biases | None
    unmasked: Tensor | None = None
    """[R] bool: rows whose mask nobody has made. One gives a token only where any mask that has this token would give
    it, too, else -1; its logits stay as penalties and biases make them. Kernels of GPUs know no such rows."""
    only: Tensor | None = None
    """[N] int64: the rows that become tokens, N of them, in this order; no penalties or biases then. None: all. Kernels
    of GPUs know no such batch."""

    @property
    def changes(self) -> bool:
        """Whether any row's logits are others before one is drawn."""
        return not (self.penalties is None and self.masks is None and self.biases is None)


class Maxima(NamedTuple):
    """What a draw from each row comes to, if there are no more tokens than these."""

    scores: Tensor
    """[R] float32: the largest logit / temperature + noise; of greedy rows, the largest logit."""
    best: Tensor
    """[R] float32: the largest logit. NaN: one is NaN or infinite; -inf: none is finite."""
    tokens: Tensor
    """[R] int64: the first with that score; the first with the largest logit where all scores are -inf. -1: `best` is
    not finite."""


class Scores(NamedTuple):
    """Log-probabilities of one token a row, and of the k likeliest beside it."""

    tokens: Tensor
    """[R] int64"""
    logprobs: Tensor
    """[R] float32"""
    ranks: Tensor
    """[R] int64; 1 is the likeliest."""
    top_tokens: Tensor
    """[R, k] int64, likeliest first."""
    top_logprobs: Tensor
    """[R, k] float32"""


class HeadNorms(NamedTuple):
    """RMS norms over each query and key head."""

    queries: Tensor
    """[key dim]: the weights of the queries' norm."""
    keys: Tensor
    """[key dim]"""
    eps: float


@dataclass(slots=True)
class RotaryTable:
    """[positions, rotary dim // 2] float32 each, of as many positions as there may be (`layers/rope.py`)."""

    cos: Tensor
    sin: Tensor


class AttentionRules(NamedTuple):
    """How a layer attends: the same in every step."""

    scale: float
    """Of the scores."""
    window: int | None = None
    """A token sees itself and the `window - 1` tokens before it. None: all before it."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap)."""
    sinks: Tensor | None = None
    """[heads]: a logit that joins each row's softmax without a value."""
    rope: RotaryTable | None = None
    """By which queries and keys are rotated, first half of a head against second half (NeoX order). With a rotary dim
    below that of the head, the rest stays as it is. None: they are, or need not be."""
    norms: HeadNorms | None = None
    """Before the rotation, and only where there is one."""


Product = Callable[[Tensor], Tensor]
"""[T, in] -> [T, out], weights (and bias) inside."""
Replay = Callable[[], Tensor]
"""Does again what was recorded, and gives the same tensor each time."""
Recorder = Callable[[Callable[[], Tensor]], Replay]
"""Records what always computes the same way on the same memory."""


class Lookup(Protocol):
    """A table of vectors, one for each token."""

    def __call__(self, tokens: Tensor, first: int | None = None) -> Tensor:
        """[T] int64 -> [T, size], of the activations' type.

        `first`: the token of the table's first row, where it has only some of them. The vector of any other is 0.
        """


class Kernels(Protocol):
    """The operations that are worth writing for a device. Activations are [T, ...], contiguous, of `dtype`.

    Queries, keys and values may instead be views of one fused projection: [T, heads, D] with contiguous heads, and any
    stride from token to token. `rms_norm` takes such views too.
    """

    name: str
    """For logs, /ready and /metrics: `cpu-avx2`, `cpu-torch: no C++ compiler found`, `cuda-triton-bfloat16`, ..."""
    device: torch.device
    """Where weights, activations and KV are."""
    dtype: torch.dtype
    """Of activations. A kernel may hold weights and KV in a narrower type."""
    prefix_groups: int
    """Groups of `AttentionBatch.prefixes` that it wants to be told; 0: it finds them itself, or does without."""

    def allocate(self, blocks: int, spec: CacheSpec) -> LayerCache:
        """A zeroed cache of one layer for `blocks` blocks of BLOCK_SIZE tokens."""

    def bytes_per_block(self, spec: CacheSpec) -> int:
        """Memory that one block takes in one layer."""

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        rules: AttentionRules,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Causal attention, and all that comes between it and the projection: norms of heads, rotation, keys and values
        to the cache.

        Queries [T, heads, key dim], keys [T, kv heads, key dim] and values [T, kv heads, value dim] to [T, heads, value
        dim]; queries and keys may be overwritten. Heads are grouped: query head h reads KV head h // (heads // kv
        heads). With `rows` [R] int64, ascending, each the last token of its sequence, only they attend: [R, heads,
        value dim]; keys and values are written of all.
        """

    def attend_projected(
        self,
        projected: Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        rules: AttentionRules,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The same of one product, [T, (heads + 2 * kv heads) * dim], to [T, heads * dim], or [R, heads * dim].

        It has queries, keys and values of a token behind one another, all of heads of one size, and may be overwritten.
        """

    def linear(self, parts: Sequence[StoredWeight], bias: Tensor | None = None, *, wide: bool = False) -> Product:
        """y = x W^T + b, where W [out, in] is `parts` behind one another, in whatever packed form is fastest here.

        `wide`: y is float32, not rounded to the activations' type where an implementation can help it.

        The caller drops its own references to the parts, so that a packed copy does not double the memory.
        """

    def gated(self, gate: StoredWeight, up: StoredWeight, bias: Tensor | None = None) -> Product:
        """y = silu(x G^T + b) * (x U^T + c), of weights [out, in]; `bias` [2 * out] is b, then c."""

    def lookup(self, table: Tensor) -> Lookup:
        """Of a table [rows, size] that lies on the device."""

    def tied(self, table: StoredWeight) -> tuple[Lookup, Product]:
        """One copy of `table` [rows, size] for both: to look rows up, and for products as `linear` makes them, wide."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[..., H] -> [..., H]; statistics in float32."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += x, in place; then rms_norm(residual)."""

    def spread(self, told: Told, tables: SeatTables, batch: FlatBatch) -> None:
        """Write `told.blocks` to the tables, and then, to the tensors of `batch`, what follows for each token.

        Query starts and context lengths are there already. Of each block table only what the context has is written.
        A token that the host does not know is at least 0, whatever its row says.
        """

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """Logits [R, V] float32, contiguous, which it may change -> tokens [R] int64. -1: of what a mask leaves, the
        row has no finite logit, or one that is NaN or infinite.

        Each row by itself: penalties, masks, biases, then the largest logit (of equals the lowest token), or a draw:
        temperature, top-k, top-p, min-p, and what is left by Gumbel-max. All kernels give the same tokens. Nothing is
        moved to the host.
        """

    def sample_scored(self, logits: Tensor, batch: SamplingBatch, rows: Tensor, k: int) -> tuple[Tensor, Scores]:
        """The same tokens, and those of `rows` [N] int64 with their log-probabilities, and the `k` likeliest.

        Log-probabilities are the model's own: of the logits as they come. Those of a row without a token say nothing.
        """

    def maxima(self, logits: Tensor, batch: SamplingBatch) -> Maxima:
        """The same tokens, and what makes them the largest, so that parts of a vocabulary can be put together.

        Tokens count from the first one of the part. So does the noise, whose key's low word is that much larger then.
        """
