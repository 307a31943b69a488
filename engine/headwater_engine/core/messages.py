"""What the HTTP process and the engine process say to each other: msgpack over ZMQ, one tagged struct a message."""

from enum import StrEnum

import msgspec

from headwater.openai.constraint import Constraint
from headwater_engine.sampling.params import SamplingParams


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log-probabilities of one token and of the likeliest ones at its place, natural log, after no temperature."""

    token: int
    logprob: float
    rank: int
    """1 is the likeliest."""
    top: list[tuple[int, float]]
    """(token, logprob), likeliest first."""


# From the HTTP process


class Generate(msgspec.Struct, tag="generate", kw_only=True):
    id: str
    prompt: list[int]
    """Prompt token ids, at least one."""
    params: SamplingParams
    priority: int = 0
    """Lower runs first, as far as nobody waits for ever; within a priority first come, first served."""
    cache_salt: str = ""
    """Requests share cached blocks only with requests of the same salt."""
    constraint: Constraint | None = None
    """The form that the answer is to have."""


class Embed(msgspec.Struct, tag="embed", kw_only=True):
    """Of an engine that makes vectors."""

    id: str
    prompt: list[int]
    """As of `Generate`. In a pair, tokens of the second text are the vocabulary's size larger, where a model tells them
    apart."""
    priority: int = 0
    cache_salt: str = ""


class Tokenizer(msgspec.Struct, tag="tokenizer"):
    """Once, before any request with a constraint."""

    text: str
    """A tokenizer.json."""
    eos_token_ids: tuple[int, ...]
    """Of the model; one of them ends an answer that may end."""


class Abort(msgspec.Struct, tag="abort"):
    ids: list[str]


class Shutdown(msgspec.Struct, tag="shutdown"):
    """Leave at once; the HTTP process has drained already."""


Request = Generate | Embed | Tokenizer | Abort | Shutdown


# From the engine process


class Ready(msgspec.Struct, tag="ready", kw_only=True):
    """Weights are loaded and the KV cache is allocated."""

    max_model_len: int
    """Prompt and output tokens together, at most."""
    vocab_size: int
    """Rows of the model: token ids are below. It may have more than the tokenizer has tokens, and fewer."""
    num_blocks: int
    block_size: int
    """Tokens in one block."""
    kernels: str
    ranks: int = 1
    """Processes that share the model."""


class Loading(msgspec.Struct, tag="loading"):
    """Progress while starting, 0 to 1."""

    fraction: float
    phase: str


class Failed(msgspec.Struct, tag="failed"):
    """The engine could not start, and why, in a sentence for the user; it exits next."""

    message: str


class Refusal(msgspec.Struct):
    """Why a request cannot be served as it is, now or later."""

    code: str
    """Of the API's error."""
    message: str


class Output(msgspec.Struct, tag="output", kw_only=True, omit_defaults=True):
    """What one step gave one request."""

    id: str
    tokens: list[int] = []
    """New tokens; an end or stop token is among them."""
    logprobs: list[TokenLogprobs] | None = None
    """Beside `tokens`."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """Once, with the first token; None for the first prompt token."""
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache; said with the first token."""
    vector: bytes | None = None
    """What an `Embed` asks for: numbers of float32, in this machine's order."""
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    """The token id out of `stop_token_ids` that ended it."""
    error: str | None = None
    """With FinishReason.ERROR: what went wrong with this request, through no fault of its own."""
    refusal: Refusal | None = None
    """With FinishReason.ERROR, instead of `error`. Before any tokens, but where a form cannot be kept any more."""


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    """Sent after steps (at most every 100 ms) and each second when idle: a sign that the loop makes progress.

    Counters are totals since the start.
    """

    steps: int
    running: int
    waiting: int
    """Also for a grammar to be made."""
    blocks_used: int
    """Blocks that a running request holds."""
    blocks_cached: int
    """Blocks that only the prefix cache holds: evictable."""
    blocks_total: int
    prompt_tokens_cached: int
    prompt_tokens_computed: int
    preemptions: int
    step_seconds: list[float]
    """Duration of each step since the last message."""
    batch_sizes: list[int]
    """Tokens in each of them."""
    prompt_tokens_limit: int
    """That a step may have beside running streams."""
    steps_on_pace: int
    """Steps with running streams that took no longer than --itl-objective-ms."""
    steps_off_pace: int
    """Those that took longer."""


class Alive(msgspec.Struct, tag="alive"):
    """Within a step that takes long: another layer of it is done."""


class Outputs(msgspec.Struct, tag="outputs"):
    outputs: list[Output]


Reply = Ready | Loading | Failed | Outputs | Stats | Alive
