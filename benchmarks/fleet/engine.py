"""A modelled engine: continuous batching with chunked prompts, in steps that take what `hardware` says.

Each step gives every answer one token, and what is left of the budget to prompts, first come, first served. Between two
events, such as a request that comes or ends, steps without prompts are all alike but for the KV that they read, so they
are taken in one stride: a run costs by requests, not by tokens.
"""

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from benchmarks.fleet.hardware import Hardware
from benchmarks.fleet.memory import BLOCK, BYTES, Memory, chain_of
from benchmarks.fleet.requests import Request
from headwater.backends.metrics import Adapters, TokenTimes

_ADAPTER_SECONDS: Final = 0.3
"""To load an adapter that has no slot: some hundred MB from a disk to the device."""


class End(Enum):
    ANSWERED = auto()
    LOST = auto()
    """The engine died."""


class TurnedDownError(Exception):
    """As many requests wait as may: a 429."""


@dataclass(slots=True, eq=False)
class Stay:
    """A request at an engine."""

    request: Request
    on_first: Callable[[float], None]
    """Told when its first token is there, in the loop's time."""
    ended: "asyncio.Future[End]"
    chain: list[int]
    """Blocks of the prompt and the answer."""
    number: int
    """In the order in which they came."""
    taken: list[int] = field(default_factory=list)
    """Blocks that it uses."""
    target: int = 0
    """Tokens that are to be computed before its next one."""
    computed: int = 0
    generated: int = 0
    began: int = 0
    """Tick of its first token since it was last admitted, less what it had generated before."""
    cached: int = 0
    """Prompt tokens that were there when it first began."""
    first_at: float | None = None


class Engine:
    """`speed`: 1 is the hardware's own. `adapters`: of them that have a slot at once; None: all."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, hardware: Hardware, speed: float = 1.0, adapters: int | None = None
    ) -> None:
        self.hardware = hardware
        self.speed = speed
        self.busy = 0.0
        """Seconds in which it computed."""
        self._loop = loop
        self._slots = adapters
        self._number = 0
        self._reset()

    def _reset(self) -> None:
        self.memory = Memory(self.hardware.kv_tokens)
        self.resident: dict[str, None] = {}
        """Adapters that have a slot, the longest unused first."""
        self._waiting: deque[Stay] = deque()
        self._prompts: deque[Stay] = deque()
        self._answers: list[tuple[int, int, Stay]] = []
        """A heap by the tick of the last token."""
        self._tick = 0
        self._context = 0
        """Tokens of all answers that are being generated, with their prompts."""
        self.token_times = TokenTimes(0.0, 0.0)
        self._steps = 0
        """In the stride that is under way; 0: it is idle."""
        self._chunks: list[tuple[Stay, int]] = []
        self._began = 0.0
        self._loading = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def kv_tokens(self) -> int:
        return self.hardware.kv_tokens

    @property
    def running(self) -> int:
        return len(self._prompts) + len(self._answers)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def adapters(self) -> Adapters | None:
        """As vLLM tells of them: by requests, not by what lies in its slots."""
        if self._slots is None:
            return None
        running = [*self._prompts, *(stay for _, _, stay in self._answers)]
        used = dict.fromkeys(stay.request.adapter for stay in [*running, *self._waiting] if stay.request.adapter)
        return Adapters(self._slots, tuple(reversed(used)))

    def submit(self, request: Request, on_first: Callable[[float], None]) -> Stay:
        """Raises TurnedDownError."""
        most = self.hardware.max_waiting
        if most is not None and len(self._waiting) >= most:
            raise TurnedDownError
        self._number += 1
        chain = chain_of(request.adapter, request.prompt + request.answer)
        stay = Stay(request, on_first, self._loop.create_future(), chain, self._number)
        self._waiting.append(stay)
        if not self._steps:
            self._plan()
        elif self._steps > 1 and len(self._waiting) == 1:
            self._cut_short()
        return stay

    def die(self) -> None:
        """Whoever was there is lost, and all that was cached."""
        if self._timer is not None:
            self._timer.cancel()
        stays = [*self._waiting, *self._prompts, *(stay for _, _, stay in self._answers)]
        self._reset()
        for stay in stays:
            stay.ended.set_result(End.LOST)

    # A step, or a stride of several

    def _plan(self) -> None:
        self._chunks = self._take_prompts()
        if not self._chunks and not self._answers:
            self._steps = 0
            return
        self._steps = 1 if self._chunks or self._loading else self._stride()
        self._began = self._loop.time()
        self._schedule()

    def _schedule(self) -> None:
        end = self._began + self._seconds(self._steps)
        self._timer = self._loop.call_at(end, self._done)

    def _seconds(self, steps: int) -> float:
        """That so many steps take from now on, the prompts' chunks being in the first."""
        cost, answers = self.hardware, len(self._answers)
        seconds = steps * (cost.step + cost.decode * answers + cost.kv * self._context)
        seconds += cost.kv * answers * steps * (steps - 1) / 2
        for stay, tokens in self._chunks:
            seconds += tokens * (cost.prefill + cost.pair * (stay.computed + tokens / 2))
        return seconds / self.speed + self._loading

    def _take_prompts(self) -> list[tuple[Stay, int]]:
        self._loading = 0.0
        budget = self.hardware.budget - len(self._answers)
        chunks: list[tuple[Stay, int]] = []
        for stay in self._prompts:
            if budget <= 0:
                return chunks
            chunks.append((stay, min(budget, stay.target - stay.computed)))
            budget -= chunks[-1][1]
        while self._waiting and budget > 0 and self.running < self.hardware.max_running:
            stay = self._waiting[0]
            if not self._admit(stay):
                break
            self._waiting.popleft()
            self._prompts.append(stay)
            chunks.append((stay, min(budget, stay.target - stay.computed)))
            budget -= chunks[-1][1]
        return chunks

    def _admit(self, stay: Stay) -> bool:
        stay.target = len(stay.request.prompt) // BYTES + stay.generated
        stay.taken = stay.chain[: stay.target // BLOCK]
        cached = self.memory.take(stay.taken, stay.target)
        if cached is None:
            return False
        stay.computed = cached
        if stay.first_at is None:
            stay.cached = cached
        self._load(stay.request.adapter)
        return True

    def _load(self, adapter: str) -> None:
        if not adapter or self._slots is None:
            return
        if adapter not in self.resident:
            self._loading += _ADAPTER_SECONDS
            if len(self.resident) >= self._slots:
                del self.resident[next(iter(self.resident))]
        self.resident.pop(adapter, None)
        self.resident[adapter] = None

    def _stride(self) -> int:
        """Steps until an answer ends, or there is no KV left for all of them."""
        return max(1, min(self._answers[0][0] - self._tick, self.memory.left // len(self._answers)))

    def _cut_short(self) -> None:
        """A request came: the stride ends with the step that is under way."""
        assert self._timer is not None
        passed = (self._loop.time() - self._began) * self.speed
        cost, answers = self.hardware, len(self._answers)
        a = cost.kv * answers / 2
        b = cost.step + cost.decode * answers + cost.kv * self._context - a
        done = (math.sqrt(b * b + 4 * a * passed) - b) / (2 * a) if a else passed / b
        self._timer.cancel()
        self._steps = min(self._steps, int(done) + 1)
        self._schedule()

    def _done(self) -> None:
        now = self._loop.time()
        self.busy += now - self._began
        steps, answers = self._steps, len(self._answers)
        seconds, tokens = self.token_times
        self.token_times = TokenTimes(seconds + (now - self._began) * answers, tokens + steps * answers)
        self._tick += steps
        self._context += steps * answers
        self.memory.grow(steps * answers)
        for stay, tokens in self._chunks:
            stay.computed += tokens
            if stay.computed == stay.target:
                self._prompts.remove(stay)
                self._begin_answer(stay, now)
        while self._answers and self._answers[0][0] <= self._tick:
            self._end(heapq.heappop(self._answers)[2])
        while self.memory.left < 0 and len(self._answers) > 1:
            self._preempt()
        self._plan()

    def _begin_answer(self, stay: Stay, now: float) -> None:
        stay.generated += 1
        stay.began = self._tick - stay.generated
        self._context += stay.target
        tokens = len(stay.request.answer) // BYTES
        heapq.heappush(self._answers, (self._tick + tokens - stay.generated, stay.number, stay))
        if stay.first_at is None:
            stay.first_at = now
            stay.on_first(now)

    def _end(self, stay: Stay) -> None:
        stay.generated = len(stay.request.answer) // BYTES
        self._leave(stay)
        stay.ended.set_result(End.ANSWERED)

    def _leave(self, stay: Stay) -> None:
        """Give its memory back, less what it computed, which stays cached. The last token is never computed."""
        tokens = len(stay.request.prompt) // BYTES + stay.generated - 1
        own = tokens - BLOCK * len(stay.taken)
        self._context -= tokens
        self.memory.release(stay.taken, own, stay.chain[len(stay.taken) : tokens // BLOCK])

    def _preempt(self) -> None:
        """The newest one gives way, and is computed again later."""
        newest = max(self._answers, key=lambda each: each[1])
        self._answers.remove(newest)
        heapq.heapify(self._answers)
        stay = newest[2]
        stay.generated = self._tick - stay.began
        self._leave(stay)
        self._waiting.appendleft(stay)
