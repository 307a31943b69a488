"""Which tokens of which requests the next step computes.

One schedule for prefill and decode under one token budget: requests that decode get their token first, then running
prompts their next chunk, then waiting requests are admitted, first come first served within a priority. A waiting
request is admitted when there are blocks for all the tokens it has. When a running one needs a block and there is none,
the one of the lowest rank is preempted: it gives all its blocks back and waits, to be computed again (from whatever the
prefix cache still holds by then).

Knows no tensor, socket or clock.
"""

from bisect import insort
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from headwater_engine.cache.prefix_cache import Lease, PrefixCache
from headwater_engine.core.request import Request

_rank = attrgetter("rank")


class Chunk(NamedTuple):
    """Tokens `start` to `start + count - 1` of a request are computed in this step."""

    request: Request
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here

    @property
    def samples(self) -> bool:
        """Whether it reaches the last token, so that its logits give a new one."""
        return self.start + self.count == len(self.request.tokens)


class Scheduler:
    """Owns all requests and their leases. `schedule` plans a step and counts its tokens as computed at once."""

    def __init__(self, cache: PrefixCache, *, max_num_seqs: int, max_batched_tokens: int) -> None:
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
        self.preemptions = 0
        self._by_id: dict[str, Request] = {}
        self._suspects: list[Request] = []
        """Were in a step that failed; each runs alone until it has shown that it was not the cause."""

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    def add(self, request: Request) -> None:
        """The caller has made sure that the request can fit when it is alone."""
        self._by_id[request.id] = request
        insort(self.waiting, request, key=_rank)

    def remove(self, request_id: str) -> Request | None:
        """Forget a request that finished or was aborted, and free its blocks. None if it is not there (any more)."""
        request = self._by_id.pop(request_id, None)
        if request is None:
            return None
        if request.lease is not None:
            self.running.remove(request)
            self.cache.close(request.lease)
            request.lease = None
        else:
            self.waiting.remove(request)
        self.absolve(request)
        return request

    def schedule(self) -> list[Chunk]:
        """Plan one step. Empty only when there is nothing to do."""
        if self._suspects:
            return self._schedule_alone(self._suspects[0])
        plan: dict[str, Chunk] = {}
        budget = self.max_batched_tokens
        budget -= self._decode(plan)
        budget -= self._continue_prompts(plan, budget)
        self._admit(plan, budget)
        return list(plan.values())

    def quarantine(self, plan: Sequence[Chunk]) -> None:
        """After a failed step: nothing it wrote can be trusted, and any of its requests may have been the cause."""
        for chunk in plan:
            self._preempt(chunk.request)
            if chunk.request not in self._suspects:
                self._suspects.append(chunk.request)
        self.cache.clear()

    def absolve(self, request: Request) -> None:
        """It has got through a step to a token, alone: something else was the cause."""
        if request in self._suspects:
            self._suspects.remove(request)

    def _decode(self, plan: dict[str, Chunk]) -> int:
        used = 0
        for request in [r for r in self.running if r.uncomputed == 1]:
            if request.lease is None:
                continue  # preempted by an older one a moment ago
            if self._make_room(request):
                self._plan(plan, request, 1)
                used += 1
        return used

    def _continue_prompts(self, plan: dict[str, Chunk], budget: int) -> int:
        used = 0
        for request in self.running:
            if budget == used:
                break
            # Blocks for all its tokens were taken on admission.
            if request.uncomputed > 0 and request.id not in plan:
                count = min(request.uncomputed, budget - used)
                self._plan(plan, request, count)
                used += count
        return used

    def _admit(self, plan: dict[str, Chunk], budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            # Room for one more block each spares the running ones a preemption right after.
            if not self._start(request, spare=len(self.running)):
                break
            count = min(request.uncomputed, budget)
            self._plan(plan, request, count)
            budget -= count

    def _schedule_alone(self, request: Request) -> list[Chunk]:
        plan: dict[str, Chunk] = {}
        while request.lease is None and not self._start(request, spare=0):
            self._preempt(self.running[-1])
        if request.uncomputed > 1 or self._make_room(request):
            self._plan(plan, request, min(request.uncomputed, self.max_batched_tokens))
        return list(plan.values()) or self.schedule()

    def _start(self, request: Request, spare: int) -> bool:
        lease = self.cache.open(request.tokens, request.salt, match=not request.wants_prompt_logprobs)
        missing = self.cache.blocks_for(len(request.tokens)) - len(lease.table)
        if missing + spare > self.cache.available and self.running:
            self.cache.close(lease)
            return False
        if not self.cache.grow(lease, len(request.tokens)):
            self.cache.close(lease)
            return False
        self.waiting.remove(request)
        insort(self.running, request, key=_rank)
        self._seat(request, lease)
        return True

    def _seat(self, request: Request, lease: Lease) -> None:
        request.lease = lease
        request.computed = lease.committed * self.cache.block_size
        if request.cached_tokens is None:
            request.cached_tokens = request.computed

    def _make_room(self, request: Request) -> bool:
        """Get the block for a decoding request's next token, at the cost of the newest if need be, itself included.

        None of those is in the plan yet, since decoding requests are planned in the order of their ranks.
        """
        assert request.lease is not None
        while not self.cache.grow(request.lease, len(request.tokens)):
            victim = self.running[-1]
            self._preempt(victim)
            self.preemptions += 1
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        assert request.lease is not None
        self.cache.close(request.lease)
        request.lease = None
        request.computed = 0
        if request.wants_prompt_logprobs:
            request.prompt_logprobs.clear()
        self.running.remove(request)
        insort(self.waiting, request, key=_rank)

    def _plan(self, plan: dict[str, Chunk], request: Request, count: int) -> None:
        assert request.lease is not None
        plan[request.id] = Chunk(request, request.computed, count)
        request.computed += count
        self.cache.commit(request.lease, request.tokens, request.computed)

    def requests(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    def check(self) -> None:
        """Raises AssertionError where requests, leases and blocks contradict each other."""
        assert self.running == sorted(self.running, key=_rank)
        assert self.waiting == sorted(self.waiting, key=_rank)
        assert {r.id for r in self.requests()} == self._by_id.keys()
        assert len(self.running) <= self.max_num_seqs
        leases = []
        for request in self.running:
            assert request.lease is not None
            assert request.computed <= len(request.lease.table) * self.cache.block_size
            leases.append(request.lease)
        assert all(r.lease is None and r.computed == 0 for r in self.waiting)
        self.cache.check(leases)
