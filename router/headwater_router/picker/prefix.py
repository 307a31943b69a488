"""Sends a request where it will see its first token soonest. Everything is one unit, predicted seconds:

    prefill(e) = seconds_per_token(e) * (prompt tokens - cached tokens on e)
    wait(e)    = seconds_per_token(e) * uncached tokens queued on e
               + seconds_per_answer(e) * (answers in progress on e + 1) * (prompts queued on e + 1)
    choose the e with the least wait(e) + prefill(e)

*Whom* it compares: all of a few endpoints. Of many, those who hold most of the prompt, and some where there should be
room (`picker.targets`); so a decision costs about the same however many there are.

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

*What an endpoint turned down or failed at* lately (`Load.penalty`) counts as so many requests that are there, of which
as many are taken to wait for their first token as of all that are on their way. So one that refuses at once, and is
always idle, gets no more than its share; nothing else is learned of it.

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
from collections.abc import Collection, Sequence
from typing import Final

from headwater.prefix import ENDS
from headwater_router.index.match import NOTHING, Match
from headwater_router.index.prefixes import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker.base import Decision, Label, Load, Prompt, Target
from headwater_router.picker.counting import end
from headwater_router.picker.known import Compared, Known, Routed, routed
from headwater_router.picker.speed import DEFAULT_SECONDS_PER_ANSWER, DEFAULT_SECONDS_PER_TOKEN, Speed
from headwater_router.picker.targets import Targets

DEFAULT_CAPACITY_TOKENS: Final = 500_000
"""What an endpoint's cache is taken to hold where it does not say so."""

_STALE_SECONDS: Final = 300.0
_TIE: Final = 0.1
_LEARNING: Final = 0.1
_LEAST_TRUST: Final = 0.05
"""Above zero, or nothing would be expected that could prove right again."""
_HOLDERS: Final = 2
"""How many are compared because of what they hold, where not all are."""
_MEAN_SECONDS: Final = 1.0
"""For so long the mean speed of many endpoints is taken not to change."""


class _View:
    """What was worked out for one `Targets`."""

    __slots__ = ("by_id", "changes", "holders", "index", "mean", "mean_at")

    def __init__(self, targets: Targets, index: PrefixIndex) -> None:
        self.index = index
        self.by_id = {target.id: target for target in targets.all}
        self.holders = 0
        """Those of the targets that the index knows, as bits."""
        self.changes = -1
        """`index.changes` when that was worked out."""
        self.mean = (DEFAULT_SECONDS_PER_TOKEN, DEFAULT_SECONDS_PER_ANSWER)
        self.mean_at = float("-inf")

    def among(self, excluded: Collection[str]) -> int:
        """The holders of a prefix that may be chosen."""
        index = self.index
        if self.changes != index.changes:
            self.changes = index.changes
            self.holders = sum(1 << index.holders[name] for name in self.by_id if name in index.holders)
        among = self.holders
        for name in excluded:
            if name in self.by_id and name in index.holders:
                among &= ~(1 << index.holders[name])
        return among


class PrefixPicker:
    """See the module. It owns what `Load` learns, and tells the index what was sent where."""

    def __init__(self, index: PrefixIndex, rng: random.Random) -> None:
        self._index = index
        self._rng = rng
        self._known: dict[str, Known] = {}
        self._learned = False
        """Whether there was any answer to learn from."""
        self._typical_prefill = 256.0
        """Uncached tokens of a request, on average: the best guess for a request of others that waits."""
        self._in_flight = 0
        self._queued = 0
        """Of these, those whose first token has not come."""

    def pick(
        self, prompt: Prompt, targets: Targets | Sequence[Target], now: float, excluded: Collection[str] = ()
    ) -> Decision:
        targets = Targets.of(targets)
        text = self._index.match(prompt.text_chain, now)
        tokens = NOTHING if prompt.token_chain is None else self._index.match_tokens(prompt.token_chain, now)
        offered = self._offered(targets, excluded, text, tokens)
        compared = self._compare(prompt, targets, offered, text, tokens, now)
        best = min(compared)
        if len(compared) > 1:
            limit = best.seconds + _TIE * best.prefill_seconds
            tied = [each for each in compared if each.seconds <= limit]
            if len(tied) > 1:
                work = (1 + _TIE) * min([each.prefill_seconds for each in tied])
                tied = [each for each in tied if each.prefill_seconds <= work]
                best = tied[int(self._rng.random() * len(tied))]
        return self._send(prompt, targets, best, compared, now)

    def first_token(self, decision: Decision, now: float) -> None:
        found = routed(decision)
        target, known = found.target, found.chosen.known
        known.see_gauges(target.load)
        if not found.prompt.streamed:
            return
        self._end_prefill(found)
        known.last_first_byte = now
        known.speed.learn(found.chosen.total_tokens, found.chosen.answers, now - found.at, now)
        known.fresh_until = now + _STALE_SECONDS
        target.load.prefill_rate = 1.0 / known.speed.seconds_per_token
        self._learned = True
        found.targets.eased(target)
        self._confirm(found)

    def finished(self, decision: Decision, now: float, outcome: Outcome, cached_tokens: int | None = None) -> None:
        found = routed(decision)
        known, expected = found.chosen.known, found.chosen.expected_tokens
        computed = found.prompt.streamed and not found.prefilling
        self._end_prefill(found)
        end(found)
        self._in_flight -= 1
        known.see_gauges(found.target.load)
        if outcome is Outcome.ANSWERED and cached_tokens is not None and expected >= 1:
            share = min(1.0, cached_tokens / expected)
            known.trust = max(known.trust + _LEARNING * (share - known.trust), _LEAST_TRUST)
        if computed:
            return
        if outcome is Outcome.ANSWERED:
            self._confirm(found)
        else:
            self._index.withdrawn(found.tickets)

    def speed(self, target_id: str) -> Speed | None:
        """What was learned of an endpoint; None: nothing."""
        known = self._known.get(target_id)
        return known.speed if known is not None else None

    def forget_speed(self, target_id: str) -> None:
        """It is to be learned anew."""
        if (known := self._known.get(target_id)) is not None:
            known.speed, known.fresh_until = Speed(), float("-inf")

    def forget(self, target_id: str) -> None:
        self._known.pop(target_id, None)
        self._index.forget(target_id)

    def _offered(self, targets: Targets, excluded: Collection[str], text: Match, tokens: Match) -> Sequence[Target]:
        """Those to compare."""
        if not targets.many or not (text or tokens):
            return targets.some(self._rng, excluded)
        view = self._view(targets)
        among, names = view.among(excluded), self._index.names
        holders = text.deepest(among, _HOLDERS, self._rng)
        if tokens:
            holders += [holder for holder in tokens.deepest(among, _HOLDERS, self._rng) if holder not in holders]
        return targets.some(self._rng, excluded, [view.by_id[names[holder]] for holder in holders])

    def _view(self, targets: Targets) -> _View:
        view = targets.view
        if not isinstance(view, _View) or view.index is not self._index:
            view = targets.view = _View(targets, self._index)
        return view

    def _compare(
        self, prompt: Prompt, targets: Targets, offered: Sequence[Target], text: Match, tokens: Match, now: float
    ) -> list[Compared]:
        compared = []
        like_others: tuple[float, float] | None = None
        typical, known_of, holder_of = self._typical_prefill, self._known.get, self._index.holders.get
        anybody, block_tokens, most = bool(text or tokens), prompt.text_block_tokens, prompt.tokens - 1
        for place, target in enumerate(offered):
            load, name = target.load, target.id
            known = known_of(name)
            if known is None:
                known = self._known[name] = Known()
            if known.whole_answers:
                self._release_due(known, now)
            if (
                load.others is not known.seen_others
                or load.reported_waiting != known.seen_waiting
                or load.reported_running != known.seen_running
            ):
                known.see_gauges(load)
            if now <= known.fresh_until:
                per_token, per_answer = known.speed.seconds_per_token, known.speed.seconds_per_answer
            else:
                if like_others is None:
                    like_others = self._mean_speed(targets, now)
                per_token, per_answer = like_others
            cached, expected = 0, 0.0
            if anybody and (holder := holder_of(name)) is not None:
                expected = ENDS[text.depth(holder)] * block_tokens
                if expected > most:
                    expected = most
                cached = int(known.trust * expected)
                if prompt.token_chain is not None:
                    cached, expected = self._by_events(prompt, target, tokens.depth(holder), cached, expected)
            uncached = prompt.tokens - cached
            total = uncached + load.prefill_tokens + known.foreign_waiting * typical
            if known.head is not None:
                total -= known.head_progress(known.head, per_token, now)
            ours = len(known.queue)
            running = load.in_flight - ours + known.foreign_running + 1
            queued = ours + known.foreign_waiting + 1
            seconds = per_token * total + per_answer * running * queued
            if load.penalty:
                seconds += self._penalty_seconds(load.penalty, running, queued, per_token, per_answer)
            prefill = per_token * uncached
            compared.append(Compared(seconds, place, prefill, total, running * queued, target, known, cached, expected))
        return compared

    def _penalty_seconds(self, penalty: int, running: int, queued: int, per_token: float, per_answer: float) -> float:
        """What so many more requests would add to a wait, if as many of them were queued as of all that there are."""
        ahead = penalty * (self._queued / self._in_flight if self._in_flight else 1.0)
        answers = (running + penalty - ahead) * (queued + ahead) - running * queued
        return per_token * ahead * self._typical_prefill + per_answer * answers

    def _by_events(self, prompt: Prompt, target: Target, depth: int, cached: int, expected: float) -> tuple[int, float]:
        """Cached and expected tokens by what KV events tell, where they tell more, or all."""
        if not self._index.follows(target.id):
            return cached, expected
        stored = depth * prompt.token_block_size
        # Engines reuse whole blocks of their own size only. At least the last token is always computed.
        stored = min(prompt.tokens - 1, stored - stored % (target.load.block_size or prompt.token_block_size))
        return (stored, stored) if stored >= cached or self._index.complete(target.id) else (cached, expected)

    def _mean_speed(self, targets: Targets, now: float) -> tuple[float, float]:
        """Seconds per token and per request, of those that answered lately, else of those that ever did."""
        view = self._view(targets)
        if not targets.many or now - view.mean_at > _MEAN_SECONDS:
            speeds = [known.speed for each in targets.all if (known := self._known.get(each.id)) is not None]
            speeds = [speed for speed in speeds if speed.samples]
            speeds = [speed for speed in speeds if now - speed.learned_at <= _STALE_SECONDS] or speeds
            view.mean_at = now
            if speeds:
                per_token = sum([speed.seconds_per_token for speed in speeds]) / len(speeds)
                per_answer = sum([speed.seconds_per_answer for speed in speeds]) / len(speeds)
                view.mean = per_token, per_answer
        return view.mean

    def _send(
        self, prompt: Prompt, targets: Targets, chosen: Compared, compared: Sequence[Compared], now: float
    ) -> Decision:
        target, cached = chosen.target, chosen.cached_tokens
        uncached = prompt.tokens - cached
        label = self._label(prompt, target, cached)
        predicted = chosen.seconds if self._learned else None
        capacity = cache_blocks(target.load, prompt.usual_block_tokens)
        tickets = self._index.dispatched(target.id, prompt.text_chain, prompt.token_chain, now, capacity)
        found = Routed(
            target, prompt, label, cached, predicted, now, targets, chosen, compared, tickets, prefill_tokens=uncached
        )
        found.begin()
        self._in_flight += 1
        self._queued += 1
        if not prompt.streamed:
            chosen.known.whole_answers.append((now + 2 * chosen.seconds, found))
        self._typical_prefill += _LEARNING * (uncached - self._typical_prefill)
        return found

    def _label(self, prompt: Prompt, target: Target, cached_tokens: int) -> Label:
        if prompt.token_chain is not None:
            spans = cached_tokens // prompt.token_block_size
            if self._index.confirmed(target.id, prompt.token_chain, spans):
                return Label.EXACT
        return Label.APPROXIMATE if prompt.text_chain else Label.FALLBACK

    def _confirm(self, found: Routed) -> None:
        # Not where the endpoint was forgotten since: the answer says nothing of the cache that it has now.
        if self._known.get(found.target.id) is found.chosen.known:
            self._index.answered(found.target.id, found.prompt.text_chain, found.tickets)

    def _release_due(self, known: Known, now: float) -> None:
        waiting = known.whole_answers
        while waiting and (waiting[0][0] <= now or waiting[0][1].ended):
            self._end_prefill(waiting.popleft()[1])

    def _end_prefill(self, found: Routed) -> None:
        if found.prefilling:
            self._queued -= 1
            found.end_prefill()


def cache_blocks(load: Load, text_block_tokens: float) -> int:
    """Units of text, of so many tokens each, that the endpoint's cache has room for."""
    tokens = load.total_blocks * load.block_size if load.total_blocks and load.block_size else DEFAULT_CAPACITY_TOKENS
    return max(1, int(tokens / text_block_tokens))
