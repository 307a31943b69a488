"""The seam between the token path and the scheduling policies.

The gateway asks a `Picker` where a request goes, and tells it what became of it. Everything here is synchronous and
pure: no socket, no clock but the `now` that is passed in (monotonic seconds). Load is counted inside `pick`, before the
gateway awaits anything, so that a burst spreads.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headwater_router.admission.ceiling import SILENCE, Ceiling, Report
from headwater_router.outcome import Outcome

if TYPE_CHECKING:
    from headwater_router.picker.targets import Targets


class Label(StrEnum):
    """How much a decision knew of the cache."""

    EXACT = "exact"
    """Token ids of the prompt were known and matched against blocks that KV events confirmed."""
    APPROXIMATE = "approximate"
    """The prompt's text was matched against our own earlier dispatches."""
    FALLBACK = "fallback"
    """No prefix to go by: an unhashable prompt, or a policy that does not look at prefixes."""


@dataclass(slots=True)
class Backlog:
    """Prompts that an endpoint has still to compute, as whoever sent them sees it. The `prefix` policy writes its own,
    in tokens as it weighs them; all is 0 with other policies."""

    work: float = 0.0
    """Of all of them."""
    head_work: float = 0.0
    """Of the one that was sent first; 0: there is none."""
    head_at: float = 0.0
    """When it was sent, in monotonic seconds; so for the next."""
    moved_at: float = float("-inf")
    """When a first token came from there last."""
    computed: float = 0.0
    """Of all before: those whose first token has come."""


class Others(NamedTuple):
    """What other routers have at an endpoint, as they said less than a second ago."""

    in_flight: int
    queued: int
    """Of these, those whose first token has not come."""
    prefill_tokens: int
    """Uncached prompt tokens of the latter."""
    prompt_tokens: int = 0
    """Of all of them."""
    backlog: Backlog | None = None
    """Of all of these routers; None where they do not say so much."""


@dataclass(slots=True)
class Load:
    """What is known of one endpoint's load. The picker writes it, except the `reported` ones (the metrics probe)."""

    in_flight: int = 0
    """Requests sent there whose answer has not ended."""
    penalty: int = 0
    """Requests that it turned down or failed lately, each for as long as an answer takes. The dispatcher writes it: an
    endpoint that fails at once would look idle. Counts like `in_flight` where load is compared."""
    queued: int = 0
    """Of those in flight, those whose first token has not come."""
    prefill_tokens: int = 0
    """Predicted uncached prompt tokens of the latter."""
    kv_tokens: int = 0
    """The same of all that are in flight: what they have put into its memory."""
    prompt_tokens: int = 0
    """Of all that are in flight."""
    prefill_rate: float = 0.0
    """Learned prompt tokens per second; 0 until there is a first answer."""
    backlog: Backlog = field(default_factory=Backlog)
    """Of ours."""
    others: Others | None = None
    """None while it is not known from all other routers, if there are any. `replicas` writes it."""
    reported: Report = SILENCE
    """The engine's own gauges; another object with each look at them."""
    total_blocks: int | None = None
    """KV blocks of the engine, where it says so."""
    block_size: int | None = None
    """Tokens in one of them."""
    ceiling: Ceiling = field(default_factory=Ceiling)
    """What it has room for."""
    _foreign: int = 0
    """Requests that its gauges showed beyond our own."""

    @property
    def reported_running(self) -> int | None:
        """None where the engine does not report it, which is not 0; so for the next two."""
        return self.reported.running

    @property
    def reported_waiting(self) -> int | None:
        return self.reported.waiting

    @property
    def reported_cache_usage(self) -> float | None:
        """0 to 1."""
        return self.reported.cache_usage

    @property
    def there(self) -> int:
        """Requests that should be there now, ours and those of others."""
        return self.in_flight + (self._foreign if self.others is None else self.others.in_flight)

    def report(self, report: Report) -> None:
        """Its gauges were read."""
        self.reported = report
        self._foreign = max(0, (report.running or 0) + (report.waiting or 0) - self.in_flight)
        self.ceiling.kv_capacity = (self.total_blocks or 0) * (self.block_size or 0)
        self.ceiling.reported(report, self.kv_tokens)


@dataclass(slots=True, eq=False)
class Target:
    """One engine as the picker sees it: an endpoint, or one of the data-parallel engines behind it. `id` is the pod's
    UID, or what plays its part: a restart is a new id."""

    id: str
    load: Load = field(default_factory=Load)
    rank: int | None = None
    """The data-parallel engine that requests are sent to by this number. None: the endpoint as a whole."""


class Slo(NamedTuple):
    """What a client wants of its answer, in seconds; infinite: anything."""

    ttft: float
    """To its first token."""
    per_token: float
    """From one token to the next."""
    first_by: float
    """When the first is to be there, in monotonic seconds."""

    def missed_by(self, first_at: float, per_token: float) -> float:
        """By how much of the time that there is, whichever is missed by more; 0: neither is."""
        return max(0.0, (first_at - self.first_by) / self.ttft, (per_token - self.per_token) / self.per_token)


@dataclass(slots=True)
class Prompt:
    """One request as the picker sees it. Built by the gateway through `headwater_router.index`."""

    model: str
    text_chain: Sequence[int]
    """Chained 64-bit hashes of the prompt's text, one for each of `headwater.prefix`'s blocks."""
    tokens: int
    """Prompt tokens: counted where the ids are known, else estimated from the length of the text."""
    token_chain: Sequence[int] | None = None
    """Chained hashes of the token ids, one for each `token_block_size`; None where the ids are not known."""
    token_block_size: int = 16
    """The same for all engines: the index translates from their own block sizes."""
    text_block_tokens: float = 128.0
    """Prompt tokens in a unit of text, `headwater.prefix.BLOCK_BYTES`, estimated."""
    usual_block_tokens: float = 128.0
    """The same over all prompts of the model. What an endpoint's cache holds is counted by it, so that no prompt of
    images or short token ids makes it look small."""
    text_bytes: int = 0
    """Of the text, as JSON, that `tokens` was estimated from; 0 where more than the text went into it."""
    streamed: bool = True
    """Whether the answer is streamed. If not, its first byte says nothing of the prefill."""
    rendered: bool = False
    """Its token ids are what the router's own tokenizer makes of it."""
    adapter: str = ""
    """The LoRA adapter that it is for, if any."""
    session: str | None = None
    """Value of the session header, for the `session` policy."""
    slo: Slo | None = None


class Candidate(NamedTuple):
    """One of those that a decision compared, for people to read."""

    target_id: str
    predicted_ttft: float | None
    """Seconds; None where nothing is predicted."""
    cached_tokens: int
    """Expected there of the prompt."""


@dataclass(slots=True, eq=False)
class Decision:
    """Where a request goes and why. Handed back to the picker as the request moves on."""

    target: Target
    prompt: Prompt
    label: Label
    predicted_cached_tokens: int
    predicted_ttft: float | None
    """Seconds; None before any rate was learned."""
    predicted_per_token: float | None
    """Seconds between two tokens of its answer; None where that is not predicted."""
    at: float
    """`now` of the pick."""
    keeps_slo: bool | None = field(default=None, kw_only=True)
    """Whether the answer should be as its client wants; None where it wants nothing, nothing is predicted, or what is
    known is too old to refuse a request for it."""

    def candidates(self) -> list[Candidate]:
        """Those that were compared, the best first, where the policy predicts; else the chosen one. Made when asked."""
        return [Candidate(self.target.id, self.predicted_ttft, self.predicted_cached_tokens)]

    def taken(self) -> float:
        """Seconds that it is expected to take from the others there. 0 where the policy does not predict that."""
        return 0.0


class Picker(Protocol):
    """A scheduling policy. Every decision gets exactly one `finished`; `first_token` comes before it or not at all."""

    def pick(
        self, prompt: Prompt, targets: "Targets | Sequence[Target]", now: float, excluded: Collection[str] = ()
    ) -> Decision:
        """Choose among `targets`, without those whose ids are `excluded`. Counts the load and the expected cache
        content at once. Raises ValueError where nobody is left to choose.

        With the same `Targets` each time it costs about the same whether they are 8 or 512; a plain sequence is looked
        at from end to end.
        """

    def alone(self, prompt: Prompt, targets: "Targets", now: float) -> float:
        """Seconds that it should take where nothing else is; 0 where nothing is known of that."""

    def first_token(self, decision: Decision, now: float) -> None:
        """The first piece of content is here: the prefill is over, and its duration teaches the rate."""

    def finished(
        self,
        decision: Decision,
        now: float,
        outcome: Outcome,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """The stay ended. Only `Outcome.ANSWERED` teaches anything. `cached_tokens`, `output_tokens`: what the engine's
        usage said."""

    def forget(self, target_id: str) -> None:
        """The endpoint is gone, or its cache is: drop everything known of what it holds."""
