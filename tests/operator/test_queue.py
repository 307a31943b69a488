"""The queue hands out every key that was added, late enough, never twice at once, and forgets none."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from benchmarks.virtual_clock import VirtualLoop, run
from headwater_operator.cluster.kinds import Key
from headwater_operator.reconcile.queue import WorkQueue

T = TypeVar("T")

A, B, C = (Key("default", name) for name in "abc")
KEYS = st.sampled_from([A, B, C])
SECONDS = st.floats(0, 200)


async def taken(queue: WorkQueue) -> Key | None:
    """What a worker gets now, if anything."""
    try:
        async with asyncio.timeout(0.001):
            return await queue.get()
    except TimeoutError:
        return None


class Queue(RuleBasedStateMachine):
    """Against a model of three sets and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.queue = WorkQueue()
        self.waiting: set[Key] = set()
        self.active: set[Key] = set()
        self.again: set[Key] = set()
        """Added while a worker had them."""
        self.later: dict[Key, float] = {}
        self.failures: dict[Key, int] = {}

    def teardown(self) -> None:
        self.loop.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it, and has the model see the time that passed."""
        result = self.loop.run_until_complete(work)
        for key, due in list(self.later.items()):
            if due <= self.loop.time() + 1e-9:
                self.expect(key)
        return result

    def expect(self, key: Key) -> None:
        self.later.pop(key, None)
        (self.again if key in self.active else self.waiting).add(key)

    def expect_after(self, key: Key, delay: float) -> None:
        if key in self.waiting:
            return
        self.later[key] = min(self.later.get(key, 1e9), self.loop.time() + delay)

    @rule(key=KEYS)
    def add(self, key: Key) -> None:
        self.queue.add(key)
        self.expect(key)

    @rule(key=KEYS, delay=SECONDS)
    def add_after(self, key: Key, delay: float) -> None:
        async def call() -> None:
            self.queue.add_after(key, delay)

        self.expect_after(key, delay)
        self.wait(call())

    @rule()
    def take(self) -> None:
        key = self.wait(taken(self.queue))
        if key is None:
            assert not self.waiting, "a worker is idle while a key waits"
            return
        assert key not in self.active, "two workers have the same key"
        assert key in self.waiting, "a key came that nobody added, or too early"
        self.waiting.remove(key)
        self.active.add(key)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.active)))
        self.queue.done(key)
        self.failures.pop(key, None)
        self.given_back(key)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.active)))

        async def call() -> float:
            return self.queue.failed(key)

        now = self.loop.time()
        delay = self.loop.run_until_complete(call())
        failures = self.failures[key] = self.failures.get(key, 0) + 1
        usual = min(0.5 * 2 ** (failures - 1), 60)
        assert usual / 2 <= delay <= usual
        self.given_back(key)
        if key not in self.waiting:
            self.later[key] = min(self.later.get(key, 1e9), now + delay)

    def given_back(self, key: Key) -> None:
        self.active.remove(key)
        if key in self.again:
            self.again.remove(key)
            self.expect(key)

    @rule(seconds=SECONDS)
    def let_pass(self, seconds: float) -> None:
        self.wait(asyncio.sleep(seconds))

    @invariant()
    def a_key_waits_once(self) -> None:
        assert len(self.queue) == len(self.waiting)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=50, stateful_step_count=40)


def test_a_key_that_is_added_often_is_handed_out_once() -> None:
    async def work() -> None:
        queue = WorkQueue()
        for key in (A, B, A, A, B):
            queue.add(key)
        assert [await taken(queue) for _ in range(3)] == [A, B, None]

    run(work())


def test_no_key_is_with_two_workers_and_what_happened_meanwhile_is_handed_out_after() -> None:
    async def work() -> None:
        queue = WorkQueue()
        queue.add(A)
        assert await taken(queue) == A
        queue.add(A)
        queue.add(A)
        assert await taken(queue) is None
        queue.done(A)
        assert await taken(queue) == A
        queue.done(A)
        assert await taken(queue) is None

    run(work())


def test_back_off_grows_up_to_a_bound_and_a_success_begins_anew() -> None:
    async def work() -> None:
        queue, loop = WorkQueue(), asyncio.get_running_loop()
        queue.add(A)
        delays = []
        for _ in range(12):
            key = await queue.get()
            failed_at = loop.time()
            delays.append(queue.failed(key))
            assert len(queue) == 0
            again = await queue.get()
            assert again == A and loop.time() - failed_at == pytest.approx(delays[-1])
            queue.add(again)
            queue.failed(again)
        assert delays[0] < 1 < 10 < delays[4] and max(delays) <= 72
        queue.done(await queue.get())
        queue.add(A)
        assert queue.failed(await queue.get()) < 1

    run(work())


def test_of_several_delays_the_earliest_counts_and_an_add_comes_before_them_all() -> None:
    async def work() -> None:
        queue, loop = WorkQueue(), asyncio.get_running_loop()
        for delay in (30.0, 10.0, 20.0):
            queue.add_after(A, delay)
        assert await queue.get() == A and loop.time() == 10
        queue.done(A)
        queue.add_after(A, 10)
        queue.add(A)
        assert await queue.get() == A and loop.time() == 10
        queue.done(A)
        await asyncio.sleep(100)
        assert len(queue) == 0, "the delay was over with the add"

    run(work())


def test_a_delay_for_a_key_that_waits_anyway_is_no_second_turn() -> None:
    async def work() -> None:
        queue = WorkQueue()
        queue.add(A)
        queue.add_after(A, 5)
        queue.done(await queue.get())
        await asyncio.sleep(10)
        assert len(queue) == 0

    run(work())


def test_a_delay_that_ends_while_a_worker_has_the_key_is_not_lost() -> None:
    async def work() -> None:
        queue = WorkQueue()
        queue.add(A)
        await queue.get()
        queue.add_after(A, 5)
        await asyncio.sleep(6)
        assert await taken(queue) is None
        queue.done(A)
        assert await taken(queue) == A

    run(work())


def test_a_worker_that_is_cancelled_while_it_waits_takes_no_key_along() -> None:
    async def work() -> None:
        queue = WorkQueue()
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(1)
        queue.add(A)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled() and await taken(queue) == A

    run(work())


def test_a_namespace_does_not_wait_behind_the_thousand_keys_of_another() -> None:
    queue = WorkQueue()
    for number in range(1000):
        queue.add(Key("crowded", str(number)))
    queue.add(Key("small", "a"))
    queue.add(Key("small", "b"))

    async def first() -> list[Key]:
        return [await queue.get() for _ in range(5)]

    assert [str(key) for key in run(first())] == ["crowded/0", "small/a", "crowded/1", "small/b", "crowded/2"]


def test_how_long_the_oldest_has_waited_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("headwater_operator.reconcile.queue.time", SimpleNamespace(monotonic=lambda: now))
    queue = WorkQueue()
    assert queue.oldest == 0
    queue.add(A)
    now = 5.0
    queue.add(B)
    queue.add(A)
    now = 7.0
    assert queue.oldest == 7
    assert run(queue.get()) == A
    assert queue.oldest == 2
