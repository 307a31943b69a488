"""Sends a request where it will see its first token soonest. Everything is one unit, predicted seconds:

    prefill(e) = seconds_per_token(e) * (prompt tokens - cached tokens on e)
    wait(e)    = seconds_per_token(e) * uncached tokens queued on e
               + seconds_per_answer(e) * (answers in progress on e + 1) * (prompts queued on e + 1)
    choose the e with the least wait(e) + prefill(e)

*Speed.* Both coefficients are learned for each endpoint from its own first bytes (`picker.speed`). An endpoint
without an answer in the last five minutes is taken to be like the mean of those that had one, so newcomers are tried,
and one that looked slow once is tried again. Before there is any answer, defaults stand in: prefixes are followed and
load is balanced from the first request on, only the exchange rate between the two is a guess.

*Load* is counted within `pick`, so the next request of a burst sees the one before. Of the prompt at the head of a
queue, only what should be left of it by now counts. The engines' own gauges are
seconds old and include what we sent ourselves. They are looked at only when they change, and only for what exceeds
our own count at that moment: the requests of others. That surplus is added to our live count and never replaces it,
so an endpoint whose gauge says "idle" looks busier with each request of a burst just as the rest do.

*Affinity and spill* are the same rule. On an idle fleet, the holder of a conversation wins by the prefill that it
saves. Once the queue there is longer than that saving, the request goes elsewhere, and the index then counts its new
home as a holder, too; requests that follow share the holders. A hot prefix so spreads until the queues of its holders
are shorter than computing it anew, and no further: each further copy costs a whole prefill, and is made only when
that is the quickest answer.

*Trust.* What dispatches let expect is discounted by what the endpoint's answers reported as cached of it before. An
engine that keeps no prefixes, or fewer than it seemed to, so gets load by its speed alone.

*Ties.* Whoever is within a tenth of the best one's own prefill time of the best is as good. Of these, those with the
least to compute are left, again to within a tenth: a copy for next to no gain would take the time from others. Among
them chance decides, never order. So a prompt that is cached goes to its holder, and one that is new to all goes
anywhere among the idle.

*Answers that are not streamed* show no first byte until they are complete, so they teach nothing about speed, and
their prompt is taken off the queue after twice the predicted time.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from headwater_router.index.prefixes import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Decision, Label, Load, Prompt, Target
from headwater_router.picker.counting import CountedDecision, begin, counted, end, end_prefill
from headwater_router.picker.speed import DEFAULT_SECONDS_PER_ANSWER, DEFAULT_SECONDS_PER_TOKEN, Speed

DEFAULT_CAPACITY_TOKENS: Final = 500_000
"""What an endpoint's cache is taken to hold where it does not say so."""

_STALE_SECONDS: Final = 300.0
_TIE: Final = 0.1
_LEARNING: Final = 0.1
_LEAST_TRUST: Final = 0.05
"""Above zero, or nothing would be expected that could prove right again."""


@dataclass(slots=True, eq=False)
class _Endpoint:
    """What this picker knows of one target beside its load."""

    speed: Speed = field(default_factory=Speed)
    queue: "OrderedDict[_Routed, None]" = field(default_factory=OrderedDict)
    """Requests of ours whose first byte has not come, oldest first."""
    head: "_Routed | None" = None
    """The first of them."""
    last_first_byte: float = float("-inf")
    trust: float = 1.0
    """Share of the tokens that dispatches let expect in its cache that its answers then reported as cached."""
    whole_answers: "deque[tuple[float, _Routed]]" = field(default_factory=deque)
    """Requests that are not streamed, with the time at which their prefill should be over."""
    seen_running: int | None = None
    seen_waiting: int | None = None
    """The gauges as last reported."""
    foreign_running: int = 0
    """Requests there that are not ours and are being answered."""
    foreign_waiting: int = 0


@dataclass(slots=True, eq=False)
class _Routed(CountedDecision):
    endpoint: _Endpoint = field(default_factory=_Endpoint)
    expected_tokens: float = 0.0
    """Cached tokens before they were discounted by the endpoint's trust."""
    work: "tuple[float, int]" = (0.0, 1)
    """What the prediction multiplied the endpoint's two coefficients with."""


class _Candidate(NamedTuple):
    """Compares by what comes first."""

    seconds: float
    """Predicted until the first token."""
    place: int
    """Among the targets; keeps comparisons from going on to what cannot be compared."""
    prefill_seconds: float
    target: Target
    endpoint: _Endpoint
    tokens: float
    answers: int


class PrefixPicker:
    """See the module. It owns what `Load` learns, and tells the index what was sent where."""

    def __init__(self, index: PrefixIndex, rng: random.Random) -> None:
        self._index = index
        self._rng = rng
        self._endpoints: dict[str, _Endpoint] = {}
        self._learned = False
        """Whether there was any answer to learn from."""
        self._typical_prefill = 256.0
        """Uncached tokens of a request, on average: the best guess for a request of others that waits."""

    def pick(self, prompt: Prompt, targets: Sequence[Target], now: float) -> Decision:
        cached = self._cached_tokens(prompt, targets, now)
        candidates = self._candidates(prompt, targets, cached, now)
        best = min(candidates)
        if len(candidates) > 1:
            limit = best.seconds + _TIE * best.prefill_seconds
            tied = [candidate for candidate in candidates if candidate.seconds <= limit]
            if len(tied) > 1:
                work = (1 + _TIE) * min(candidate.prefill_seconds for candidate in tied)
                best = self._rng.choice([candidate for candidate in tied if candidate.prefill_seconds <= work])
        return self._send(prompt, best, cached, now)

    def first_token(self, decision: Decision, now: float) -> None:
        routed = _routed(decision)
        target, endpoint = routed.target, routed.endpoint
        self._see_gauges(endpoint, target.load)
        if not routed.prompt.streamed:
            return
        self._end_prefill(routed)
        endpoint.last_first_byte = now
        endpoint.speed.learn(*routed.work, now - routed.at, now)
        target.load.prefill_rate = 1.0 / endpoint.speed.seconds_per_token
        self._learned = True
        self._confirm(routed)

    def finished(self, decision: Decision, now: float, outcome: Outcome, cached_tokens: int | None = None) -> None:
        routed = _routed(decision)
        computed = routed.prompt.streamed and not routed.prefilling
        self._end_prefill(routed)
        end(routed)
        self._see_gauges(routed.endpoint, routed.target.load)
        if cached_tokens is not None and routed.expected_tokens >= 1:
            share = min(1.0, cached_tokens / routed.expected_tokens)
            trust = routed.endpoint.trust + _LEARNING * (share - routed.endpoint.trust)
            routed.endpoint.trust = max(trust, _LEAST_TRUST)
        if computed:
            return
        if outcome is Outcome.ANSWERED:
            self._confirm(routed)
        elif self._is_current(routed):
            prompt = routed.prompt
            self._index.withdrawn(routed.target.id, prompt.text_chain, prompt.token_chain)

    def forget(self, target_id: str) -> None:
        self._endpoints.pop(target_id, None)
        self._index.forget(target_id)

    def _cached_tokens(self, prompt: Prompt, targets: Sequence[Target], now: float) -> dict[str, int]:
        """By endpoint, where there are any. At least the last token is always computed."""
        most = prompt.tokens - 1
        cached = {}
        for target_id, depth in self._index.match(prompt.text_chain, now).items():
            endpoint = self._endpoints.get(target_id)
            trust = endpoint.trust if endpoint is not None else 1.0
            cached[target_id] = int(trust * min(most, depth * prompt.text_block_tokens))
        if prompt.token_chain is not None:
            depths = self._index.match_tokens(prompt.token_chain, now)
            for target in targets:
                if self._index.follows(target.id):
                    tokens = depths.get(target.id, 0) * prompt.token_block_size
                    # Engines reuse whole blocks of their own size only.
                    tokens -= tokens % (target.load.block_size or prompt.token_block_size)
                    if not self._index.complete(target.id):
                        tokens = max(tokens, cached.get(target.id, 0))
                    cached[target.id] = min(most, tokens)
        return cached

    def _candidates(
        self, prompt: Prompt, targets: Sequence[Target], cached: dict[str, int], now: float
    ) -> list[_Candidate]:
        candidates = []
        like_others: tuple[float, float] | None = None
        for place, target in enumerate(targets):
            load = target.load
            endpoint = self._endpoints.get(target.id)
            if endpoint is None:
                endpoint = self._endpoints[target.id] = _Endpoint()
            if endpoint.whole_answers:
                self._release_due(endpoint, now)
            if load.reported_waiting != endpoint.seen_waiting or load.reported_running != endpoint.seen_running:
                self._see_gauges(endpoint, load)
            speed = endpoint.speed
            per_token, per_answer = speed.seconds_per_token, speed.seconds_per_answer
            if not speed.samples or now - speed.learned_at > _STALE_SECONDS:
                if like_others is None:
                    like_others = self._mean_speed(targets, now)
                per_token, per_answer = like_others
            ours, waiting = len(endpoint.queue), endpoint.foreign_waiting
            answers = (load.in_flight - ours + endpoint.foreign_running + 1) * (ours + waiting + 1)
            tokens: float = prompt.tokens - cached.get(target.id, 0)
            prefill = per_token * tokens
            tokens += load.prefill_tokens + waiting * self._typical_prefill
            if endpoint.head is not None:
                tokens -= _head_progress(endpoint.head, per_token, now)
            seconds = per_token * tokens + per_answer * answers
            candidates.append(_Candidate(seconds, place, prefill, target, endpoint, tokens, answers))
        return candidates

    def _mean_speed(self, targets: Sequence[Target], now: float) -> tuple[float, float]:
        """Seconds per token and per request, of those that answered lately, else of those that ever did."""
        speeds = [endpoint.speed for target in targets if (endpoint := self._endpoints.get(target.id))]
        known = [speed for speed in speeds if speed.samples]
        known = [speed for speed in known if now - speed.learned_at <= _STALE_SECONDS] or known
        if not known:
            return DEFAULT_SECONDS_PER_TOKEN, DEFAULT_SECONDS_PER_ANSWER
        return (
            sum(speed.seconds_per_token for speed in known) / len(known),
            sum(speed.seconds_per_answer for speed in known) / len(known),
        )

    def _send(self, prompt: Prompt, chosen: _Candidate, cached: dict[str, int], now: float) -> Decision:
        target, endpoint = chosen.target, chosen.endpoint
        cached_tokens = cached.get(target.id, 0)
        uncached = prompt.tokens - cached_tokens
        routed = _Routed(
            target,
            prompt,
            self._label(prompt, target, cached_tokens),
            cached_tokens,
            chosen.seconds if self._learned else None,
            now,
            prefill_tokens=uncached,
            endpoint=endpoint,
            expected_tokens=cached_tokens / endpoint.trust,
            work=(chosen.tokens, chosen.answers),
        )
        begin(routed)
        endpoint.queue[routed] = None
        if endpoint.head is None:
            endpoint.head = routed
        if not prompt.streamed:
            endpoint.whole_answers.append((now + 2 * chosen.seconds, routed))
        self._typical_prefill += _LEARNING * (uncached - self._typical_prefill)
        capacity = cache_blocks(target.load, prompt.usual_block_tokens)
        self._index.dispatched(target.id, prompt.text_chain, prompt.token_chain, now, capacity)
        return routed

    def _label(self, prompt: Prompt, target: Target, cached_tokens: int) -> Label:
        if prompt.token_chain is not None:
            spans = cached_tokens // prompt.token_block_size
            if self._index.confirmed(target.id, prompt.token_chain, spans):
                return Label.EXACT
        return Label.APPROXIMATE if prompt.text_chain else Label.FALLBACK

    def _confirm(self, routed: _Routed) -> None:
        if self._is_current(routed):
            self._index.answered(routed.target.id, routed.prompt.text_chain)

    def _is_current(self, routed: _Routed) -> bool:
        """Whether the endpoint was not forgotten since: else the answer says nothing of the cache it has now."""
        return self._endpoints.get(routed.target.id) is routed.endpoint

    def _see_gauges(self, endpoint: _Endpoint, load: Load) -> None:
        if load.reported_waiting != endpoint.seen_waiting or load.reported_running != endpoint.seen_running:
            endpoint.seen_waiting, endpoint.seen_running = load.reported_waiting, load.reported_running
            running, waiting = load.reported_running or 0, load.reported_waiting or 0
            foreign = max(0, running + waiting - load.in_flight)
            endpoint.foreign_waiting = min(foreign, max(0, waiting - len(endpoint.queue)))
            endpoint.foreign_running = foreign - endpoint.foreign_waiting

    def _release_due(self, endpoint: _Endpoint, now: float) -> None:
        waiting = endpoint.whole_answers
        while waiting and (waiting[0][0] <= now or waiting[0][1].ended):
            self._end_prefill(waiting.popleft()[1])

    def _end_prefill(self, routed: _Routed) -> None:
        if routed.prefilling:
            endpoint = routed.endpoint
            del endpoint.queue[routed]
            if endpoint.head is routed:
                endpoint.head = next(iter(endpoint.queue), None)
            end_prefill(routed)


def _head_progress(head: _Routed, per_token: float, now: float) -> float:
    """Tokens that should be computed by now of the prompt at the head of an endpoint's queue, at most all of it."""
    last = head.endpoint.last_first_byte
    progress = (now - (head.at if head.at > last else last)) / per_token
    return progress if progress < head.prefill_tokens else head.prefill_tokens


def _routed(decision: Decision) -> _Routed:
    routed = counted(decision)
    if not isinstance(routed, _Routed):
        raise TypeError(f"the prefix policy did not make the decision {decision!r}")
    return routed


def cache_blocks(load: Load, text_block_tokens: float) -> int:
    """Blocks of text, of so many tokens each, that the endpoint's cache has room for."""
    tokens = load.total_blocks * load.block_size if load.total_blocks and load.block_size else DEFAULT_CAPACITY_TOKENS
    return max(1, int(tokens / text_block_tokens))
