"""Sends a request where it costs the least, in seconds, itself and the others there:

    first(e)  = until its first token: the prompts before it, its own without what is cached there, a step of all
    rest(e)   = from there to its last token: its steps, each the longer the more answers share it
    others(e) = what it takes from the answers there: they wait while its prompt is computed, and share steps with it
    choose the e with the least of the three, as the objective weighs them (`picker.objective`)

To ask for the first token alone packs all who share a prefix onto a few engines, where they then decode slowly, and
leaves others idle: a prefix of 4,000 tokens saves a tenth of a second once, a crowded step costs every token.

    work(e)    = uncached * (1 + (cached + uncached / 2) / 20000)
    first(e)   = factor(e) * (constant + answer * a + context * k + token * (work before it + work(e)))
    rest(e)    = factor(e) * (step * out + overlap * (answer * r + context * k))
    others(e)  = factor(e) * (token * work(e) * (r + w + 1) + overlap * r * (answer + context * prompt tokens))

with a answers in progress, r requests in all, k tokens of their prompts. *The five costs*, and the factor of each
endpoint, are learned from what answers took (`picker.speed`), *out*, the tokens of its answer, from those to prompts
that begin alike. *Overlap* are the steps that it and another will share, each with an end that nobody knows: out *
other / (out + other).

*Who waits* while its prompt is computed: all r, as prompts before its own will be answers by then. A further wait hurts
those more who have waited long: w are the waits of all there, each in units of what a request takes on average and at
most four. That is next to nothing for chats, and keeps a document from being sent behind another one.

*Whom* it compares: all of a few endpoints. Of many, those who hold most of the prompt, and some where there should be
room (`picker.targets`); so a decision costs about the same however many there are. *Which* of these it takes, where
several are about as good or one has too much already, is in `picker.best`.

*Adapters*: where an engine says which it has in use, and should lack that of the request, *first* has the time to load
it on top, and *others* as much for each request there, and once more where another one has to go (`picker.adapters`).

*Load* is counted within `pick`, so the next request of a burst sees the one before. Of the prompt at the head of a
queue, only what should be left of it by now counts. The engines' own gauges are seconds old and include what we sent
ourselves. They are looked at only when they change, and only for what exceeds our own count at that moment: the
requests of others. That surplus is added to our live count and never replaces it, so an endpoint whose gauge says
"idle" looks busier with each request of a burst just as the rest do.

*Affinity and spill* are the same rule. On an idle fleet, the holder of a conversation wins by the prefill that it
saves. Once its answers and its queue cost more than that saving, the request goes elsewhere, and the index then counts
its new home as a holder, too; requests that follow share the holders. A hot prefix so spreads as far as its answers
need.

*What an endpoint turned down or failed at* lately (`Load.penalty`) counts as so many requests that are there, of which
as many are taken to wait for their first token as of all that are on their way. So one that refuses at once, and is
always idle, gets no more than its share; nothing else is learned of it.

*Trust.* What dispatches and KV events let expect is discounted by what the endpoint's answers reported as cached of it
before. An engine that keeps no prefixes, or fewer than it seemed to, so gets load by its speed alone.

*Whole answers*, not streamed, show no first token until they are complete. Their whole time teaches, and the prompt is
taken off the queue after twice its predicted prefill."""

import random
from collections.abc import Collection, Sequence
from typing import Final

from headwater.prefix import ENDS
from headwater_router.index.match import NOTHING, Match
from headwater_router.index.prefixes import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker.adapters import LOADING_SECONDS
from headwater_router.picker.base import Decision, Label, Load, Prompt, Target
from headwater_router.picker.best import best_of, nearest
from headwater_router.picker.counting import end
from headwater_router.picker.known import Compared, Known, Routed, routed
from headwater_router.picker.learned import MOST_TOKENS, Learned
from headwater_router.picker.objective import WEIGHTS, Objective
from headwater_router.picker.speed import Factor, Pace, Speed, Stretch
from headwater_router.picker.targets import Targets

DEFAULT_CAPACITY_TOKENS: Final = 500_000
"""What an endpoint's cache is taken to hold where it does not say so."""

_LEARNING: Final = 0.1
_LEAST_TRUST: Final = 0.05
"""Above zero, or nothing would be expected that could prove right again."""
_OUTDATED: Final = 10.0
"""Seconds without an answer, after which an idle endpoint may have become quicker than it is known to be."""
_HOLDERS: Final = 2
"""How many are compared because of what they hold, where not all are."""
_ATTENTION: Final = 1 / 20_000
"""Of a token's cost, what each token before it adds: as much as all the rest after some 20,000 with models of 8B to
70B."""
_DISPLACED: Final = 1.0
"""Times what a prompt costs to compute, that it costs those whose blocks its own take the place of: they come back."""
_LONGEST_WAIT: Final = 4.0
"""Times what a request takes on average, up to which a longer wait makes a further one dearer."""


class _View:
    """What was worked out for one `Targets`."""

    __slots__ = ("by_id", "changes", "holders", "index")

    def __init__(self, targets: Targets, index: PrefixIndex) -> None:
        self.index = index
        self.by_id = {target.id: target for target in targets.all}
        self.holders = 0
        """Those of the targets that the index knows, as bits."""
        self.changes = -1
        """`index.changes` when that was worked out."""

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

    def __init__(self, index: PrefixIndex, rng: random.Random, objective: Objective = Objective.LATENCY) -> None:
        self._index = index
        self._rng = rng
        self._weights = WEIGHTS[objective]
        self._known: dict[str, Known] = {}
        self.learned = Learned(self._known)
        self._typical_seconds = 0.0
        """That a request takes to its end, on average, as was predicted; 0 before that means anything."""
        self._typical_work = 256.0
        """Of a request, on average: the best guess for a request of others that waits."""
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
        pace, output = self.learned.pace(targets, prompt, now), self.learned.output(prompt)
        compared = self._compare(prompt, pace, output, offered, text, tokens, now)
        typical = self._weights.rest * self._typical_seconds
        if prompt.slo is None or not pace.samples:
            best = best_of(compared, pace.usual, typical, self._rng)
            return self._send(prompt, targets, pace, output, best, compared, now)
        miss, kept = nearest(compared, prompt.slo, output, now)
        best = best_of(kept, pace.usual, typical, self._rng)
        idle = not best.known.requests
        found = self._send(prompt, targets, pace, output, best, compared, now)
        if not (miss and idle and now - pace.learned_at > _OUTDATED):
            found.keeps_slo = not miss
        return found

    def alone(self, prompt: Prompt, targets: Targets, now: float) -> float:
        """At an endpoint that holds the most of it that anybody does."""
        pace = self.learned.pace(targets, prompt, now)
        if not pace.samples:
            return 0.0
        held = ENDS[self._index.match(prompt.text_chain, now).longest] * prompt.text_block_tokens
        uncached = prompt.tokens - min(held, prompt.tokens - 1)
        work = uncached * (1.0 + _ATTENTION * (prompt.tokens - 0.5 * uncached))
        return pace.usual * pace.seconds(Stretch(1.0, self.learned.output(prompt), 0.0, 0.0, work))

    def first_token(self, decision: Decision, now: float) -> None:
        found = routed(decision)
        target, known = found.target, found.chosen.known
        if target.load.reported is not known.seen_report or target.load.others is not known.seen_others:
            known.see_gauges(target.load, now)
        if not found.prompt.streamed:
            return
        found.since = known.sums(target.load, now)
        self._end_prefill(found)
        known.backlog.moved_at = now
        self.learned.learn(found, found.until_first, now - found.at, now)
        found.targets.eased(target)
        if self._is_known(found):
            self._index.answered(target.id, found.prompt.text_chain, found.tickets)

    def finished(
        self,
        decision: Decision,
        now: float,
        outcome: Outcome,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        found = routed(decision)
        load, known, expected = found.target.load, found.chosen.known, found.chosen.expected_tokens
        computed = found.prompt.streamed and not found.prefilling
        if load.others is not known.seen_others:
            known.see_gauges(load, now)
        if outcome is Outcome.ANSWERED and output_tokens:
            self.learned.learn_rest(found, output_tokens, now)
        else:
            known.sums(load, now)
        if found.prefilling:
            self._end_prefill(found)
        found.leave()
        end(found)
        self._in_flight -= 1
        if load.reported is not known.seen_report:
            known.see_gauges(load, now)
        if outcome is Outcome.ANSWERED and cached_tokens is not None and expected >= 1:
            share = min(1.0, cached_tokens / expected)
            known.trust = max(known.trust + _LEARNING * (share - known.trust), _LEAST_TRUST)
        if not (computed or outcome is Outcome.ANSWERED):
            self._index.withdrawn(found.tickets)
        elif self._is_known(found):
            units = _units(found.prompt, output_tokens or 0)
            if computed:
                self._index.ended(found.target.id, found.prompt.text_chain, units)
            else:
                self._index.answered(found.target.id, found.prompt.text_chain, found.tickets, units)

    def speed(self, target_id: str) -> Speed | None:
        """What was learned of an endpoint; None: nothing."""
        known = self._known.get(target_id)
        if known is None or known.pace is None:
            return None
        _, step, answer, _, token = known.pace.costs
        factor = known.factor.beside(known.pace.usual)
        return Speed(known.factor.samples, factor, factor * step, factor * answer, factor * token)

    def forget_speed(self, target_id: str) -> None:
        """It is to be learned anew."""
        if (known := self._known.get(target_id)) is not None:
            known.factor, known.fresh_until, known.own_factor = Factor(), float("-inf"), 0.0

    def forget(self, target_id: str) -> None:
        self._known.pop(target_id, None)
        self._index.forget(target_id)

    def _offered(self, targets: Targets, excluded: Collection[str], text: Match, tokens: Match) -> Sequence[Target]:
        """Those to compare."""
        if not targets.many or (text is NOTHING and tokens is NOTHING):
            return targets.some(self._rng, excluded)
        view = self._view(targets)
        among, names = view.among(excluded), self._index.names
        holders = text.deepest(among, _HOLDERS, self._rng)
        if tokens is not NOTHING:
            holders += [holder for holder in tokens.deepest(among, _HOLDERS, self._rng) if holder not in holders]
        return targets.some(self._rng, excluded, [view.by_id[names[holder]] for holder in holders])

    def _view(self, targets: Targets) -> _View:
        view = targets.view
        if not isinstance(view, _View) or view.index is not self._index:
            view = targets.view = _View(targets, self._index)
        return view

    def _compare(
        self,
        prompt: Prompt,
        pace: Pace,
        output: float,
        offered: Sequence[Target],
        text: Match,
        tokens: Match,
        now: float,
    ) -> list[Compared]:
        compared = []
        typical, known_of = self._typical_work, self._known.get
        constant, step, answer, context, token = pace.costs
        size, usual, anybody = prompt.tokens, pace.usual, text is not NOTHING or tokens is not NOTHING
        most, block_tokens, holder_of = size - 1, prompt.text_block_tokens, self._index.holders.get
        first_weight, rest_weight, others_weight = self._weights
        share, all_steps = answer + context * size, step * output
        for place, target in enumerate(offered):
            load, name = target.load, target.id
            known = known_of(name)
            if known is None:
                known = self._known[name] = Known()
                load.backlog = known.backlog
            if known.whole_answers:
                self._release_due(known, now)
            if load.reported is not known.seen_report or load.others is not known.seen_others:
                known.see_gauges(load, now)
            if known.stale or load.in_flight != known.in_flight:
                known.settle(load)
            factor = known.own_factor or usual
            cached, expected = 0, 0.0
            if anybody and (holder := holder_of(name)) is not None:
                expected = ENDS[text.depth(holder)] * block_tokens
                if expected > most:
                    expected = most
                if prompt.token_chain is not None:
                    expected = self._by_events(prompt, target, tokens.depth(holder), expected)
                cached = int(known.trust * expected)
            uncached = size - cached
            work = uncached * (1.0 + _ATTENTION * (cached + 0.5 * uncached))
            foreign = known.foreign_work
            ahead = known.backlog.work + (known.foreign_waiting * typical if foreign is None else foreign)
            if head := known.head_work:
                done = (now - known.head_since) / (factor * token)
                ahead -= done if done < head else head
            answers: float = known.answers
            requests: float = known.requests
            if load.penalty:
                waits = load.penalty * (self._queued / self._in_flight if self._in_flight else 1.0)
                requests, ahead = requests + load.penalty, ahead + waits * typical
                answers += load.penalty - waits
            prefill = token * work
            if requests:
                other = known.other or output
                overlap = output * other / (output + other)
                read = context * known.prompts
                first = factor * (constant + answer * answers + read + token * ahead + prefill)
                rest = factor * (all_steps + overlap * (answer * requests + read))
                others = factor * (prefill * (requests + known.waits + _DISPLACED) + overlap * requests * share)
            else:
                first, rest, others = factor * (constant + prefill), factor * all_steps, factor * prefill * _DISPLACED
            if prompt.adapter and known.slots.lack(prompt.adapter):
                first, others = first + LOADING_SECONDS, others + LOADING_SECONDS * (requests + known.slots.full)
            cost = first_weight * first + rest_weight * rest + others_weight * others
            if load.ceiling.tight and requests:
                # Somebody is thrown out and computed again, or it waits until one of those there has ended.
                lacking = load.ceiling.lacking(load.kv_tokens, uncached + output)
                cost += lacking * factor * (token * typical + all_steps / requests)
            compared.append(
                Compared(
                    cost,
                    place,
                    first,
                    rest,
                    factor * prefill,
                    work,
                    ahead,
                    answers,
                    factor * requests,
                    target,
                    known,
                    cached,
                    expected,
                )
            )
        return compared

    def _by_events(self, prompt: Prompt, target: Target, depth: int, expected: float) -> float:
        """Tokens expected there by what KV events tell, where they tell more, or all."""
        if not self._index.follows(target.id):
            return expected
        # At least the last token is always computed, and engines reuse whole blocks of their own size only.
        stored = min(prompt.tokens - 1, depth * prompt.token_block_size)
        stored -= stored % (target.load.block_size or 1)
        return stored if stored >= expected or self._index.complete(target.id) else expected

    def _send(
        self,
        prompt: Prompt,
        targets: Targets,
        pace: Pace,
        output: float,
        chosen: Compared,
        compared: Sequence[Compared],
        now: float,
    ) -> Decision:
        target, cached, known = chosen.target, chosen.cached_tokens, chosen.known
        if prompt.adapter:
            known.slots.used(prompt.adapter)
        label = self._label(prompt, target, cached)
        capacity = cache_blocks(target.load, prompt.usual_block_tokens)
        seconds = chosen.first + chosen.rest
        if pace.taught:
            usual = self._typical_seconds or seconds
            self._typical_seconds = usual + _LEARNING * (seconds - usual)
        tickets = self._index.dispatched(target.id, prompt.text_chain, prompt.token_chain, now, capacity)
        found = Routed(
            target,
            prompt,
            label,
            cached,
            chosen.first if pace.samples else None,
            chosen.rest / output if pace.samples else None,
            now,
            targets,
            chosen,
            compared,
            tickets,
            pace,
            chosen.work,
            output,
            Stretch(
                1.0,
                0.0,
                chosen.answers,
                target.load.prompt_tokens + known.foreign_context,
                chosen.ahead + chosen.work,
            ),
            known.sums(target.load, now),
            self._weights,
            min(chosen.first / (self._typical_seconds or seconds), _LONGEST_WAIT),
            prefill_tokens=prompt.tokens - cached,
        )
        found.begin()
        self._in_flight += 1
        self._queued += 1
        if not prompt.streamed:
            known.whole_answers.append((now + 2 * chosen.first, found))
        self._typical_work += _LEARNING * (chosen.work - self._typical_work)
        return found

    def _label(self, prompt: Prompt, target: Target, cached_tokens: int) -> Label:
        if prompt.token_chain is not None:
            spans = cached_tokens // prompt.token_block_size
            if self._index.confirmed(target.id, prompt.token_chain, spans):
                return Label.EXACT
        return Label.APPROXIMATE if prompt.text_chain else Label.FALLBACK

    def _is_known(self, found: Routed) -> bool:
        """Whether the endpoint was not forgotten since: else the answer says nothing of the cache that it has now."""
        return self._known.get(found.target.id) is found.chosen.known

    def _release_due(self, known: Known, now: float) -> None:
        waiting = known.whole_answers
        while waiting and (waiting[0][0] <= now or waiting[0][1].ended):
            found = waiting.popleft()[1]
            known.sums(found.target.load, now)
            self._end_prefill(found)

    def _end_prefill(self, found: Routed) -> None:
        if found.prefilling:
            self._queued -= 1
            found.end_prefill()
            known = found.chosen.known
            known.computed(found.work)
            known.backlog.computed += found.work


def cache_blocks(load: Load, text_block_tokens: float) -> int:
    """Units of text, of so many tokens each, that the endpoint's cache has room for."""
    tokens = load.total_blocks * load.block_size if load.total_blocks and load.block_size else DEFAULT_CAPACITY_TOKENS
    return max(1, int(tokens / text_block_tokens))


def _units(prompt: Prompt, tokens: int) -> int:
    """Of text, that an answer of so many tokens has."""
    return round(tokens / prompt.usual_block_tokens) if tokens <= MOST_TOKENS else 0


def make(index: PrefixIndex, rng: random.Random, objective: Objective) -> PrefixPicker:
    return PrefixPicker(index, rng, objective)
