"""A loop that is held up is told of truly, for a minute, and to everybody who asks."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.virtual_clock import VirtualLoop, run
from headwater.lag import AT_REST, EVERY, WINDOW, LoopLag


class World:
    """A loop in virtual time whose lag is measured."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.looks, self._computed = 0, 0.0
        self.lag = LoopLag(clock=self.loop.time, cpu=self._cpu)

    def _cpu(self) -> float:
        self.looks += 1
        return self._computed

    def hold_up(self, seconds: float) -> None:
        """By computing."""
        self._computed += seconds
        self.loop.hold_up(seconds)

    async def block(self, after: float, seconds: float) -> None:
        """Measured from the beginning, whatever the moment it comes at."""
        measuring = asyncio.create_task(self.lag.run())
        await asyncio.sleep(after)
        self.hold_up(seconds)
        await asyncio.sleep(3 * EVERY)
        measuring.cancel()


@given(st.floats(0, 0.05), st.floats(EVERY, 20))
def test_a_block_reads_as_long_as_it_was_but_for_ten_milliseconds(after: float, seconds: float) -> None:
    world = World()
    run(world.block(after, seconds), world.loop)
    assert seconds - EVERY - 1e-9 <= world.lag.longest <= seconds + 1e-9


@pytest.mark.parametrize("after", [0.0, 0.001, 0.0055, 0.0099, 0.09, 0.0999])
def test_a_block_of_a_tenth_of_a_second_reads_as_ninety_milliseconds_at_least(after: float) -> None:
    world = World()
    run(world.block(after, 0.1), world.loop)
    assert world.lag.longest >= 0.09 - 1e-9


@given(st.floats(0, 0.05), st.floats(EVERY, 5), st.floats(EVERY, 5))
def test_what_it_computed_is_told_apart_from_want_of_cpu(after: float, computed: float, starved: float) -> None:
    world = World()

    async def both() -> None:
        measuring = asyncio.create_task(world.lag.run())
        await asyncio.sleep(after)
        world.hold_up(computed)
        world.loop.hold_up(starved)
        await asyncio.sleep(3 * EVERY)
        measuring.cancel()

    run(both(), world.loop)
    assert world.lag.computed == pytest.approx(computed)
    assert world.lag.longest >= computed + starved - EVERY - 1e-9


def test_a_loop_that_nothing_holds_up_has_no_lag() -> None:
    world = World()
    run(world.block(0.5, 0.0), world.loop)
    assert world.lag.longest < 1e-9


def test_two_works_in_one_turn_are_one_block() -> None:
    world = World()

    async def work() -> None:
        world.hold_up(0.05)

    async def both() -> None:
        measuring = asyncio.create_task(world.lag.run())
        await asyncio.sleep(0.005)
        await asyncio.gather(work(), work())
        await asyncio.sleep(3 * EVERY)
        measuring.cancel()

    run(both(), world.loop)
    assert world.lag.longest >= 0.09 - 1e-9


def test_who_reads_takes_it_from_nobody_and_it_is_told_for_a_minute() -> None:
    world = World()

    async def readings() -> list[float]:
        measuring = asyncio.create_task(world.lag.run())
        await asyncio.sleep(0.001)
        world.hold_up(2.0)
        await asyncio.sleep(1)
        world.hold_up(0.5)
        told = []
        for _ in range(4):
            await asyncio.sleep(WINDOW / 2 - 2)
            told += [world.lag.longest, world.lag.longest]
        measuring.cancel()
        return told

    first, again, second, _, third, _, last, _ = run(readings(), world.loop)
    assert first == again == second >= 1.99 - 1e-9, "it was within the minute"
    assert third < 1e-9 and last < 1e-9, "both are over"


def test_the_longest_is_followed_by_the_next_longest_once_it_is_over() -> None:
    world = World()

    async def readings() -> tuple[float, float]:
        measuring = asyncio.create_task(world.lag.run())
        await asyncio.sleep(0.001)
        world.hold_up(2.0)
        await asyncio.sleep(WINDOW / 2)
        world.hold_up(0.5)
        await asyncio.sleep(1)
        both = world.lag.longest
        await asyncio.sleep(WINDOW / 2)
        measuring.cancel()
        return both, world.lag.longest

    both, one = run(readings(), world.loop)
    assert both >= 1.99 - 1e-9 and 0.5 - AT_REST - 1e-9 <= one <= 0.5 + 1e-9


def test_a_block_is_seen_by_what_has_its_turn_right_behind_it() -> None:
    world = World()

    async def reading() -> float:
        measuring = asyncio.create_task(world.lag.run())
        await asyncio.sleep(0.001)
        world.hold_up(0.3)
        told = world.lag.longest
        measuring.cancel()
        return told

    assert run(reading(), world.loop) >= 0.29 - 1e-9


def test_time_that_passes_after_it_has_ended_is_no_lag() -> None:
    world = World()

    async def later() -> float:
        await world.block(0.0, 0.0)
        await asyncio.sleep(5)
        return world.lag.longest

    assert run(later(), world.loop) < 1e-9


@given(st.floats(2, 2.1), st.floats(AT_REST + EVERY, 20))
@settings(max_examples=20)
def test_a_block_that_comes_out_of_rest_reads_as_long_as_it_was_too(after: float, seconds: float) -> None:
    world = World()
    run(world.block(after, seconds), world.loop)
    assert seconds - EVERY - 1e-9 <= world.lag.longest <= seconds + 1e-9


@given(st.floats(2, 2.1), st.floats(AT_REST, 20))
@settings(max_examples=20)
def test_time_without_cpu_out_of_rest_reads_as_fifty_milliseconds_less_at_most(after: float, seconds: float) -> None:
    world = World()

    async def starved() -> None:
        measuring = asyncio.create_task(world.lag.run())
        await asyncio.sleep(after)
        world.loop.hold_up(seconds)
        await asyncio.sleep(AT_REST)
        measuring.cancel()

    run(starved(), world.loop)
    assert seconds - AT_REST - 1e-9 <= world.lag.longest <= seconds + 1e-9


@given(st.floats(0, 0.1), st.floats(0.001, 0.05))
@settings(max_examples=20)
def test_the_blocks_of_a_loop_that_works_are_true_but_for_ten_milliseconds_each(begins: float, apart: float) -> None:
    world = World()

    async def working() -> float:
        measuring = asyncio.create_task(world.lag.run())
        await asyncio.sleep(2 + begins)
        for _ in range(20):
            world.hold_up(0.03)
            await asyncio.sleep(apart)
        world.hold_up(0.1)
        await asyncio.sleep(3 * EVERY)
        measuring.cancel()
        return world.lag.longest

    assert 0.1 - EVERY - 1e-9 <= run(working(), world.loop) <= 0.13 + 1e-9


def test_a_loop_at_rest_is_looked_at_twenty_times_a_second() -> None:
    world = World()
    run(world.block(61, 0.0), world.loop)
    assert world.looks <= 60 / AT_REST + 1 / EVERY + 10


@pytest.mark.parametrize(("computes", "looks"), [(0.0004, 1 / AT_REST), (0.0006, 1 / EVERY)])
def test_a_loop_that_computes_more_than_half_of_its_time_is_looked_at_more_often(computes: float, looks: float) -> None:
    """A router that passes tokens on computes some hundred microseconds a thousand times a second, and sleeps."""
    world = World()

    async def working() -> None:
        measuring = asyncio.create_task(world.lag.run())
        for _ in range(10_000):
            world.hold_up(computes)
            await asyncio.sleep(0.001 - computes)
        measuring.cancel()

    run(working(), world.loop)
    assert world.looks == pytest.approx(10 * looks, rel=0.2, abs=100)
    assert world.lag.longest < EVERY
