"""Which tokens of which requests the next step computes.

One schedule for prefill and decode under one token budget: requests that decode get their token first, then running
prompts their next chunk, then waiting requests are admitted, first come first served within a priority; only that a
prompt of many steps lets short ones pass. A waiting request is admitted when there are blocks for all the tokens it
has. When a running one needs a block and there is none, the one of the lowest rank is preempted: it gives all its
blocks back and waits, to be computed again (from whatever the prefix cache still holds by then). So are those that run
and are less urgent than one that waits, where that one finds no room.

A step is planned, and later it settles, or fails and is retracted with those behind it. One may be planned while the
one before it is still under way; what only its result can tell is then left open.

Knows no tensor, socket or clock.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from headwater_engine.cache.prefix_cache import Lease, PrefixCache
from headwater_engine.core.pace import Pace
from headwater_engine.core.request import Request
from headwater_engine.core.step import Seat, Step

LOOKED_AT = 16
"""Prompts behind a long one that a step looks at, whether they are short: what is cached has to be found for each."""

_rank = attrgetter("rank")

Drafter = Callable[[Request, int], list[int]]
"""Guesses the next tokens of a request, at most so many."""


@dataclass(slots=True, eq=False)
class Flight:
    """A step that is planned and has not settled."""

    step: Step
    requests: list[Request]
    """Whose the spans are. Some may be gone by the time that it settles."""
    suspect: bool = False
    """Whether they were in a step that failed, so that nothing should be planned on top of this one."""
    started: float = 0.0
    """When, by the clock of whoever runs it."""


class Scheduler:
    """Owns all requests, their leases and their seats."""

    def __init__(
        self,
        cache: PrefixCache,
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        itl_objective: float | None = None,
        drafter: Drafter | None = None,
        whole_prompts: bool = False,
    ) -> None:
        """`itl_objective`: seconds between two tokens of a stream that prompts should leave room for.

        `whole_prompts`: none is cut into chunks, and one that is longer than a step may be has a step of its own.
        """
        if max_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_batched_tokens ({max_batched_tokens}) must be at least max_num_seqs ({max_num_seqs}), "
                "or running requests could not all decode in one step"
            )
        self.cache = cache
        self.max_num_seqs = max_num_seqs
        self.max_batched_tokens = max_batched_tokens
        self.running: list[Request] = []
        """By rank."""
        self.waiting: list[Request] = []
        """By rank."""
        self.flights: deque[Flight] = deque()
        """Planned and not settled, oldest first."""
        self.preemptions = 0
        self.pace = Pace(itl_objective, max_batched_tokens)
        self._drafter = drafter
        self._whole_prompts = whole_prompts
        self._by_id: dict[str, Request] = {}
        self.number = 0
        """Of the step that was planned last."""
        self._seats = list(range(max_num_seqs - 1, -1, -1))
        self._left: list[int] = []
        """Seats that the workers do not know to be free."""
        self._suspects: list[list[Request]] = []
        """Groups of requests whose step failed. Each is tried by itself; who gets through has shown its innocence."""

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    def knows(self, request: Request) -> bool:
        """Whether it has neither ended nor been aborted."""
        return self._by_id.get(request.id) is request

    def add(self, request: Request) -> None:
        """The caller has made sure that the request can fit when it is alone."""
        self._by_id[request.id] = request
        insort(self.waiting, request, key=_rank)

    def remove(self, request_id: str) -> None:
        """Forget a request that finished or was aborted, and free its blocks. It may be gone already."""
        request = self._by_id.pop(request_id, None)
        if request is None:
            return
        if request.matcher is not None:
            request.matcher.drop()
        if request.lease is None:
            _take_out(self.waiting, request)
        else:
            self._stop(request)

    # One step

    def plan(self) -> Flight | None:
        """Plan one step. None: nothing to do, or nothing until those under way have settled."""
        if self.flights and self._must_settle_first():
            return None
        while self._suspects:
            if flight := self._plan_step(self._suspects.pop()):
                return flight
        return self._plan_step(None)

    def settle(self, flight: Flight) -> None:
        """It has run; it is the oldest one."""
        assert self.flights.popleft() is flight

    def retract(self, flight: Flight) -> Request | None:
        """It failed: as if it and those behind it had never been planned. What ran before stays.

        Returns the request that is to blame, if that is clear: it was the only one. Otherwise those of the failed step
        are tried again in two halves, and so on, and all others wait meanwhile.
        """
        number = flight.step.number
        while self.flights and self.flights[-1].step.number >= number:
            failed = self.flights.pop()
            for request, span in zip(failed.requests, failed.step.spans, strict=True):
                if self.knows(request):
                    request.retract(span)
        for request in [request for request in self.running if request.admitted >= number]:
            self._preempt(request)
        self.cache.revoke(number, [request.lease for request in self.running if request.lease is not None])
        if len(flight.requests) == 1:
            return flight.requests[0] if self.knows(flight.requests[0]) else None
        half = len(flight.requests) // 2
        self._suspects += [flight.requests[half:], flight.requests[:half]]
        return None

    # How it is planned

    def _must_settle_first(self) -> bool:
        """Whether what is under way decides over what can be planned."""
        if self._drafter is not None or self._suspects or any(flight.suspect for flight in self.flights):
            return True  # drafts begin behind the last token, whose value must be known
        if self._who_may_make_way() and not self._has_room(self.waiting[0]):
            return True
        # None that is under way may be preempted, and some that end now may give back what is missing.
        missing = sum(
            self.cache.blocks_for(request.planned + 1) - len(request.lease.table)
            for request in self.running
            if request.uncomputed == 1 and request.lease is not None
        )
        return missing > self.cache.available

    def _plan_step(self, only: Sequence[Request] | None) -> Flight | None:
        self.number += 1
        if only is None:
            self._make_way()
        step = Step(self.number, left=[], seated=[], blocks=[], drafts=[], spans=[], under_way=len(self.flights))
        flight = Flight(step, [], suspect=only is not None)
        decoding: list[Request] = []
        reading: list[Request] = []
        for request in self.running:
            left = request.uncomputed
            if left > 0 and not request.held and (only is None or request in only):
                (decoding if request.decodes else reading).append(request)
        budget = min(self.max_batched_tokens, self.pace.prompt_tokens_alone)
        if decoding:
            budget = self._decode(flight, decoding)
        reading = [request for request in reading if request.lease is not None]  # and was not preempted just now
        waiting = [request for request in self.waiting[: self.max_num_seqs] if only is None or request in only]
        self._read(flight, reading + waiting, budget)
        if not flight.requests:
            return None
        step.left, self._left = self._left, []
        self.flights.append(flight)
        return flight

    def _decode(self, flight: Flight, decoding: Sequence[Request]) -> int:
        """One token each, and behind some of them drafts, or what was forced. Returns what is left for prompts."""
        most = min(self.max_batched_tokens - len(decoding), self.pace.prompt_tokens)
        used = 0
        for request in decoding:
            if request.lease is None:
                continue  # preempted by an older one a moment ago
            if self._make_room(request):
                spare = most // 2 - used  # prompts go on, too
                forced = self._forced(request, spare)
                drafts = self._draft(request, spare)
                self._plan(flight, request, 1 + forced, drafts)
                used += forced + len(drafts)
        if used:  # kernels have sequences of one token first
            pairs = sorted(zip(flight.step.spans, flight.requests, strict=True), key=lambda pair: pair[0].count > 1)
            flight.step.spans, flight.requests = [span for span, _ in pairs], [request for _, request in pairs]
        return most - used

    def _forced(self, request: Request, most: int) -> int:
        """How many of the forced tokens are computed at once: there is room in the step and, without anybody's
        preemption, in memory."""
        assert request.lease is not None
        forced = min(request.uncomputed - 1, most)
        return forced if self.cache.grow(request.lease, request.planned + 1 + forced) else 0

    def _draft(self, request: Request, most: int) -> list[int]:
        """Guesses of the next tokens, as many as there is room for: in the step, in the answer and in memory."""
        if self._drafter is None or request.matcher is not None:
            return []  # what may follow a guess is known when it has proved right
        most = min(most, request.limit - 1 - len(request.tokens))
        if most <= 0:
            return []
        assert request.lease is not None
        drafts = self._drafter(request, most)
        return drafts if self.cache.grow(request.lease, len(request.tokens) + len(drafts)) else []

    def _read(self, flight: Flight, prompts: list[Request], budget: int) -> None:
        """The next chunks of prompts, in this order.

        One that does not end in this step leaves half of what it could have to some behind it that do.
        """
        while prompts and budget:
            request = prompts.pop(0)
            if self._whole_prompts and len(request.tokens) > budget:
                if flight.requests:
                    break
                budget = len(request.tokens)
            if request.lease is None and not self._start(request):
                break
            if request.uncomputed > budget:
                others = [each for each in prompts[:LOOKED_AT] if each.priority <= request.priority]
                budget -= self._let_pass(flight, others, budget // 2)
            count = min(request.uncomputed, budget)
            self._plan(flight, request, count)
            budget -= count

    def _let_pass(self, flight: Flight, prompts: Sequence[Request], budget: int) -> int:
        """Compute those of `prompts` that end within the budget. Returns what they took of it."""
        left = budget
        for request in prompts:
            if left == 0:
                break
            if request.uncomputed <= left if request.lease is not None else self._start(request, most=left):
                count = request.uncomputed
                self._plan(flight, request, count)
                left -= count
        return budget - left

    def _start(self, request: Request, most: int | None = None) -> bool:
        """Have a waiting request run, if there is room, and if it has no more than `most` tokens to compute."""
        if len(self.running) == self.max_num_seqs:
            return False
        lease = self._open(request)
        cached = lease.committed * self.cache.block_size
        too_long = most is not None and len(request.tokens) - cached > most
        if too_long or not self._fits(request, lease):
            self.cache.close(lease)
            return False
        self.cache.grow(lease, len(request.tokens))
        _take_out(self.waiting, request)
        insort(self.running, request, key=_rank)
        request.lease, request.seat, request.admitted = lease, self._seats.pop(), self.number
        request.planned = cached
        return True

    def _open(self, request: Request) -> Lease:
        return self.cache.open(request.tokens, request.salt, match=not request.wants_prompt_logprobs)

    def _fits(self, request: Request, lease: Lease) -> bool:
        """Whether there are blocks for what the lease lacks of all the request's tokens."""
        missing = self.cache.blocks_for(len(request.tokens)) - len(lease.table)
        # Room for one more block each spares the running ones a preemption right after.
        return missing + len(self.running) <= self.cache.available

    def _has_room(self, request: Request) -> bool:
        """Whether a waiting request could start now."""
        if len(self.running) == self.max_num_seqs:
            return False
        lease = self._open(request)
        fits = self._fits(request, lease)
        self.cache.close(lease)
        return fits

    def _who_may_make_way(self) -> list[Request]:
        """Those that run and are less urgent than who waits first, by number and by rank; the last one goes first."""
        if not (self.waiting and self.running) or self.waiting[0].rank > self.running[-1].rank:
            return []
        first = self.waiting[0]
        return [each for each in self.running if each.priority > first.priority and each.rank > first.rank]

    def _make_way(self) -> None:
        """Preempt for who waits first, until it has a seat and blocks."""
        victims = self._who_may_make_way()
        while victims and not self._has_room(self.waiting[0]):
            self._preempt(victims.pop())
            self.preemptions += 1

    def _make_room(self, request: Request) -> bool:
        """Get the block for a decoding request's next token, at the cost of the newest if need be, itself included.

        None of those is in the plan yet, since decoding requests are planned in the order of their ranks.
        """
        assert request.lease is not None
        while not self.cache.grow(request.lease, request.planned + 1):
            victim = self.running[-1]
            self._preempt(victim)
            self.preemptions += 1
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._stop(request)
        if request.wants_prompt_logprobs:
            request.prompt_logprobs.clear()
        insort(self.waiting, request, key=_rank)

    def _stop(self, request: Request) -> None:
        """It runs no more. What steps under way still write to its blocks, they write before anybody else does."""
        assert request.lease is not None
        self._offer(request)
        self.cache.close(request.lease)
        self._seats.append(request.seat)
        self._left.append(request.seat)
        request.lease, request.seat, request.told = None, -1, -1
        request.planned = request.awaited = 0
        _take_out(self.running, request)

    def _plan(self, flight: Flight, request: Request, count: int, drafts: Sequence[int] = ()) -> None:
        step, lease = flight.step, request.lease
        assert lease is not None
        if request.told < 0:
            masked = request.matcher is not None
            step.seated.append(Seat(request.seat, list(request.tokens), len(request.output), request.params, masked))
            request.told = 0
        elif request.untold:
            step.given.append((request.seat, request.tokens[-request.untold :]))
        request.untold = 0
        if request.told < len(lease.table):
            step.blocks.append((request.seat, lease.table[request.told :]))
            request.told = len(lease.table)
        if drafts:
            step.drafts.append((request.seat, list(drafts)))
        step.spans.append(request.plan(count, len(drafts)))
        if request.matcher is not None and step.spans[-1].sampled:
            step.masked.append(request.seat)
        flight.requests.append(request)
        self._offer(request)

    def _offer(self, request: Request) -> None:
        """Full blocks for reuse, as far as it is known what is in them: not those of drafts."""
        assert request.lease is not None
        known = min(request.planned, len(request.tokens))
        self.cache.commit(request.lease, request.tokens, known, self.number)

    def requests(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    def check(self) -> None:
        """Raises AssertionError where requests, leases, seats and blocks contradict each other."""
        assert self.running == sorted(self.running, key=_rank)
        assert self.waiting == sorted(self.waiting, key=_rank)
        assert {r.id for r in self.requests()} == self._by_id.keys()
        seats = [request.seat for request in self.running] + self._seats
        assert sorted(seats) == list(range(self.max_num_seqs)), "a seat is lost, or has two owners"
        leases = []
        for request in self.running:
            assert request.lease is not None
            assert request.planned <= len(request.lease.table) * self.cache.block_size
            leases.append(request.lease)
        assert all(r.lease is None and r.planned == 0 and r.awaited == 0 for r in self.waiting)
        self.cache.check(leases)


def _take_out(queue: list[Request], request: Request) -> None:
    """Of a queue that is ordered by rank, which says where it is."""
    del queue[bisect_left(queue, request.rank, key=_rank)]
