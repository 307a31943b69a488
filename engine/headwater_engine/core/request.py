"""One request inside the engine process."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from headwater_engine.cache.prefix_cache import Lease
from headwater_engine.core.messages import Embed, FinishReason, Generate, TokenLogprobs
from headwater_engine.core.step import Span
from headwater_engine.grammar.matcher import Matcher
from headwater_engine.sampling.params import SamplingParams

STEPS_A_LEVEL = 32
"""That one step of `priority` is worth: so much later may the more urgent one come and still go first."""
MOST_LEVELS = 64
"""What is above or below counts as this, so that 2 * 64 * 32 steps are the most that anybody is passed."""


@dataclass(slots=True, eq=False)
class Request:
    """A few counters over a list of tokens. There is no prefill or decode phase: `planned` catches up with `tokens`.

        tokens   |        prompt        |  output  | awaited |
        KV       |  planned     |
                 |cached|

    A step computes some of the positions behind `planned`; when it reaches the last one, its logits give the next
    token. A step is planned before the one before it has given its token: that one is `awaited`, and has a position
    but no value yet.
    """

    id: str
    params: SamplingParams
    priority: int
    order: int
    """Of arrival; unique."""
    turn: int
    """The step in which it came, and a head start or a handicap for its priority."""
    salt: str
    prompt: list[int]
    tokens: list[int]
    """Whose values are known."""
    limit: int
    """Tokens at most, prompt and output together; that of the last one is never computed."""
    output: list[int] = field(default_factory=list)
    lease: Lease | None = None
    """While running; a waiting request owns no block."""
    seat: int = -1
    """While running: its row in the workers' tables."""
    told: int = -1
    """Blocks that the workers know; -1: they have to be told everything."""
    admitted: int = 0
    """The step that it runs since."""
    planned: int = 0
    """Positions whose key and value are in the lease's blocks once all steps that are planned have run."""
    awaited: int = 0
    """Tokens that planned steps are sure to give."""
    cached_tokens: int | None = None
    """Prompt tokens that came from the cache when it first ran."""
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    matcher: Matcher | None = None
    """Where the answer has a form: as far as the output has come."""
    forced: int = 0
    """Tokens at the end of the answer that nobody drew, since its form left no choice."""
    untold: int = 0
    """How many of them the workers have to be told."""
    withheld: Span | None = None
    """The last one that gives no token after all, since its mask was late."""

    @classmethod
    def of(
        cls, message: Generate, order: int, max_model_len: int, step: int = 0, matcher: Matcher | None = None
    ) -> "Request":
        """`step`: the number of the one before which it came."""
        return cls(
            id=message.id,
            params=message.params,
            priority=message.priority,
            order=order,
            turn=step + max(-MOST_LEVELS, min(message.priority, MOST_LEVELS)) * STEPS_A_LEVEL,
            salt=message.cache_salt,
            prompt=message.prompt,
            tokens=list(message.prompt),
            limit=min(len(message.prompt) + message.params.max_tokens, max_model_len),
            matcher=matcher,
        )

    @classmethod
    def of_vector(cls, message: Embed, order: int, step: int) -> "Request":
        """As if one token were to come behind the prompt: what would give it gives the vector."""
        generate = Generate(
            id=message.id,
            prompt=message.prompt,
            params=SamplingParams(max_tokens=1, temperature=0),
            priority=message.priority,
            cache_salt=message.cache_salt,
        )
        return cls.of(generate, order, len(message.prompt) + 1, step)

    @property
    def rank(self) -> tuple[int, int]:
        """What runs first and is preempted last.

        It never changes, and yet it ages: who is less urgent stands behind those that come later only for so many
        steps. So nobody waits for ever.
        """
        return self.turn, self.order

    @property
    def uncomputed(self) -> int:
        """Positions that the next step may compute."""
        return min(len(self.tokens) + self.awaited, self.limit - 1) - self.planned

    @property
    def decodes(self) -> bool:
        """Whether there is but the last token to compute, and those that were forced behind it."""
        return 0 < self.uncomputed <= 1 + self.forced

    @property
    def held(self) -> bool:
        """Whether there is no use in computing before its mask is made, which was late already."""
        return self.matcher is not None and self.matcher.late and not self.matcher.made

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt log-probabilities are still owed; they go out with the first output token."""
        return self.params.prompt_logprobs is not None and not self.output

    def plan(self, count: int, drafts: int = 0) -> Span:
        """Count the next positions as planned, and those of `drafts` guessed tokens behind them."""
        start, planned = self.planned, self.planned + count
        samples = planned == len(self.tokens) + self.awaited
        scored = max(0, min(planned, len(self.prompt) - 1) - start) if self.wants_prompt_logprobs else 0
        self.planned = planned + drafts
        self.awaited += samples
        return Span(self.seat, start, count + drafts, samples + drafts, scored)

    def settle(self, span: Span, given: int) -> None:
        """A planned span has run and gave so many tokens, which `append` takes next."""
        if self.cached_tokens is None:
            self.cached_tokens = span.start
        if self.gives(span):
            self.awaited -= 1
            self.planned -= span.sampled - given  # drafts that proved wrong

    def gives(self, span: Span) -> bool:
        """Whether a planned span gives tokens: not where some were forced while it was under way, or none was drawn."""
        return span.sampled > 0 and span.start + span.count >= len(self.tokens) and span is not self.withheld

    def withhold(self, span: Span) -> None:
        """A planned span, and none is planned behind it, gives no token: its last position is computed once more."""
        self.planned -= span.sampled
        self.awaited -= 1
        self.withheld = span

    def retract(self, span: Span) -> None:
        """A planned span has failed, and all that were planned behind it are retracted already."""
        self.planned = span.start
        self.awaited -= self.gives(span)
        self.told = -1

    def append(self, token: int) -> tuple[FinishReason | None, int | None]:
        """Take a sampled token. Returns the finish reason, if it ends the request, and the stop token, if one did.

        Raises GrammarError where the answer has a form, and cannot go on in it.
        """
        self.tokens.append(token)
        self.output.append(token)
        params = self.params
        if self.matcher is not None:
            self.matcher.advance(token)
            if self.matcher.ended:
                return FinishReason.STOP, None
        if len(self.output) >= params.min_tokens:
            if not params.ignore_eos and token in params.eos_token_ids:
                return FinishReason.STOP, None
            if token in params.stop_token_ids:
                return FinishReason.STOP, token
        if len(self.tokens) >= self.limit:
            return FinishReason.LENGTH, None
        return None, None

    def force(self) -> Iterator[int]:
        """Tokens that follow the one that was drawn, where the form leaves no choice: for `append`, one by one.

        None where log-probabilities are asked for, which are of tokens that were drawn: there, masks leave no others.
        A step that is under way was to give the first of them, which is no news then.
        """
        self.forced = self.untold = 0
        if self.matcher is None or self.params.logprobs is not None:
            return
        for token in self.matcher.forced():
            self.awaited = 0
            self.forced += 1
            self.untold += 1
            yield token
