"""One request inside the engine process."""

from dataclasses import dataclass, field

from headwater_engine.cache.prefix_cache import Lease
from headwater_engine.core.messages import FinishReason, Generate, TokenLogprobs
from headwater_engine.sampling.params import SamplingParams


@dataclass(slots=True, eq=False)
class Request:
    """A few counters over a list of tokens. There is no prefill or decode phase: `computed` catches up with `tokens`.

        tokens   |        prompt        |  output  |
        KV       |  computed    |
                 |cached|

    A step computes some of the tokens behind `computed`; when it reaches the last one, its logits give the next token.
    """

    id: str
    params: SamplingParams
    priority: int
    order: int
    """Of arrival; unique."""
    salt: str
    prompt: list[int]
    tokens: list[int]
    output: list[int] = field(default_factory=list)
    lease: Lease | None = None
    """While running; a waiting request owns no block."""
    computed: int = 0
    """Tokens whose key and value are in the lease's blocks."""
    cached_tokens: int | None = None
    """Prompt tokens that came from the cache when it was first admitted."""
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @classmethod
    def of(cls, message: Generate, order: int) -> "Request":
        return cls(
            id=message.id,
            params=message.params,
            priority=message.priority,
            order=order,
            salt=message.cache_salt,
            prompt=message.prompt,
            tokens=list(message.prompt),
        )

    @property
    def rank(self) -> tuple[int, int]:
        """What runs first and is preempted last."""
        return self.priority, self.order

    @property
    def uncomputed(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt log-probabilities are still owed; they go out with the first output token."""
        return self.params.prompt_logprobs is not None and not self.output

    def append(self, token: int, max_model_len: int) -> tuple[FinishReason | None, int | None]:
        """Take a sampled token. Returns the finish reason, if it ends the request, and the stop token, if one did."""
        self.tokens.append(token)
        self.output.append(token)
        params = self.params
        if len(self.output) >= params.min_tokens:
            if not params.ignore_eos and token in params.eos_token_ids:
                return FinishReason.STOP, None
            if token in params.stop_token_ids:
                return FinishReason.STOP, token
        if len(self.output) >= params.max_tokens or len(self.tokens) >= max_model_len:
            return FinishReason.LENGTH, None
        return None, None
