"""Replicas from load: never fewer on what is only half known, no flapping, and delays that outlive the operator."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.resource import Autoscaling
from headwater_operator.autoscaling.decide import LoadHistory, ScaleDecision, ScaleMemory, decide

TICK = 2.0
START = 1_000_000.0


def rule(**changes: object) -> Autoscaling:
    values = {"min": 0, "max": 8, "in_flight_per_replica": 10} | changes
    seconds = {"stable_window", "panic_window", "scale_up_delay", "scale_down_delay"}
    made = {name: timedelta(seconds=value) if name in seconds else value for name, value in values.items()}
    return Autoscaling.model_construct(**(Autoscaling.model_validate({"max": 8}).__dict__ | made))


@dataclass
class World:
    """A deployment, its load, an operator that looks every two seconds, and a clock."""

    rule: Autoscaling
    replicas: int = 1
    now: float = START
    history: LoadHistory = field(default_factory=lambda: LoadHistory(TICK))
    memory: ScaleMemory = field(default_factory=ScaleMemory)
    written: dict[str, Any] = field(default_factory=dict)
    writes: int = 0
    changes: list[tuple[float, int]] = field(default_factory=list)
    decision: ScaleDecision = field(default_factory=lambda: ScaleDecision(0, "", ScaleMemory()))

    def tick(self, load: int | None, held: int = 0, *, complete: bool = True) -> None:
        """`load` None: no router answers."""
        self.now += TICK
        if load is not None:
            self.history.add(self.now, load - held, held, complete=complete, keep=60)
        self.decision = decide(self.rule, self.history, self.replicas, self.now, self.memory)
        self.memory = self.decision.memory
        if (written := self.memory.written()) != self.written:
            self.written = written
            self.writes += 1
        if self.decision.desired != self.replicas:
            self.replicas = self.decision.desired
            self.changes.append((self.now - START, self.replicas))

    def run(self, seconds: float, load: Callable[[float], int | None] | int | None, **options: bool) -> None:
        for _ in range(round(seconds / TICK)):
            self.tick(load(self.now) if callable(load) else load, **options)

    def restart_operator(self, down: float = 0.0) -> None:
        self.now += down
        self.history = LoadHistory(TICK)
        self.memory = ScaleMemory.read(json.loads(json.dumps(self.written)))


# Up


def test_a_step_is_met_within_the_panic_window_and_never_left_again() -> None:
    world = World(rule(scale_down_delay=0), replicas=1)
    world.run(120, 5)
    world.run(600, 75)
    reached = [at for at, replicas in world.changes if replicas == 8]
    assert reached and reached[0] <= 120 + 8
    assert [replicas for _, replicas in world.changes] == sorted({replicas for _, replicas in world.changes})


def test_a_small_rise_is_met_by_the_mean_of_the_stable_window() -> None:
    world = World(rule(), replicas=2)
    world.run(120, 19)
    world.run(60, 25)
    assert world.changes and world.changes[0][1] == 3 and world.changes[0][0] > 130


@pytest.mark.parametrize(("load", "expected"), [(22, 2), (23, 3)])
def test_within_the_tolerance_nothing_happens(load: int, expected: int) -> None:
    world = World(rule(tolerance=0.1), replicas=2)
    world.run(600, load)
    assert world.replicas == expected


def test_the_delay_of_scaling_up_is_kept_and_begins_anew_when_the_load_falls() -> None:
    world = World(rule(scale_up_delay=60), replicas=1)
    world.run(30, 15)
    world.run(90, 1)
    assert not world.changes
    world.run(150, 15)
    assert [replicas for _, replicas in world.changes] == [2]


def test_what_only_one_of_the_routers_reports_is_enough_to_scale_up() -> None:
    world = World(rule(), replicas=1)
    world.run(20, 40, complete=False)
    assert world.replicas == 4


def test_never_more_than_max() -> None:
    world = World(rule(), replicas=1)
    world.run(60, 1000)
    assert world.replicas == 8
    assert "8 is the most" in world.decision.reason


# Down


def test_down_to_what_has_been_enough_all_through_the_delay() -> None:
    world = World(rule(scale_down_delay=300), replicas=8)
    world.run(100, 75)
    world.run(200, 35)
    world.run(250, 15)
    assert [replicas for _, replicas in world.changes][-1] == 4, "less has been enough, but not for long enough"
    world.run(120, 15)
    assert world.replicas == 2


def test_a_short_rise_begins_the_delay_anew() -> None:
    world = World(rule(scale_down_delay=300), replicas=4)
    world.run(280, 12)
    world.run(10, 39)
    world.run(290, 12)
    assert not world.changes


def test_to_zero_only_after_the_delay_over_a_window_without_any_request() -> None:
    world = World(rule(scale_down_delay=300), replicas=1)
    world.run(1200, lambda now: int(now % 50 < TICK))
    assert not world.changes, "a request every 50 s keeps the last replica"
    idle = world.now - START
    world.run(400, 0)
    assert world.replicas == 0
    assert idle + 300 <= world.changes[-1][0] <= idle + 300 + 60 + 2 * TICK


def test_not_to_zero_while_the_gateway_holds_a_request() -> None:
    world = World(rule(scale_down_delay=0), replicas=1)
    for _ in range(300):
        world.tick(1, held=1)
    assert world.replicas == 1


# From zero


def test_a_held_request_wakes_at_once_whatever_the_delay() -> None:
    world = World(rule(scale_up_delay=600), replicas=0)
    world.run(60, 0)
    world.tick(1, held=1, complete=False)
    assert world.replicas == 1
    assert "holds 1" in world.decision.reason


def test_as_many_as_are_held_need() -> None:
    world = World(rule(), replicas=0)
    world.tick(35, held=35)
    assert world.replicas == 4


def test_nobody_asks_and_nothing_wakes() -> None:
    world = World(rule(), replicas=0)
    world.run(600, 0)
    world.run(600, None)
    assert not world.changes


def test_an_old_report_of_a_held_request_wakes_nobody() -> None:
    history = LoadHistory(TICK)
    history.add(START, 0, 3, complete=True, keep=60)
    assert decide(rule(), history, 0, START + 60, ScaleMemory()).desired == 0


@pytest.mark.parametrize("mean", [15, 19, 20, 21, 29, 30, 31])
def test_noise_around_a_border_does_not_flap(mean: int) -> None:
    noise, load = Random(mean), float(mean)

    def noisy(now: float) -> int:
        nonlocal load
        load = max(load + noise.gauss(0, 3) + (mean - load) * 0.2, 0)
        return round(load)

    world = World(rule(scale_down_delay=300), replicas=3)
    world.run(7200, noisy)
    assert len(world.changes) <= 3, world.changes


# What is not known


@pytest.mark.parametrize("what", ["nothing", "a part", "now and then"])
def test_never_down_on_what_is_not_known(what: str) -> None:
    world = World(rule(scale_down_delay=60), replicas=5)
    world.run(30, 45)
    if what == "nothing":
        world.run(3600, None)
    elif what == "a part":
        world.run(3600, 0, complete=False)
    else:
        world.run(3600, lambda now: 0 if now % 20 < 10 else None)
    assert not world.changes
    assert "not known" in world.decision.reason


def test_one_missed_look_is_no_gap() -> None:
    world = World(rule(scale_down_delay=60), replicas=5)
    world.run(300, lambda now: 0 if now % 10 else None)
    assert world.replicas == 0


def test_time_in_which_nothing_was_known_counts_for_no_delay() -> None:
    world = World(rule(scale_down_delay=300), replicas=5)
    world.run(200, 5)
    world.run(1000, None)
    world.run(150, 5)
    assert not world.changes
    world.run(100, 5)
    assert world.replicas == 1


def test_a_half_known_load_still_ends_the_delay() -> None:
    world = World(rule(scale_down_delay=300), replicas=5)
    world.run(280, 5)
    world.run(10, 45, complete=False)
    world.run(280, 5)
    assert not world.changes


# Restarts of the operator


def test_a_restart_in_the_middle_keeps_the_delay_and_is_never_early() -> None:
    world = World(rule(scale_down_delay=600), replicas=5)
    world.run(400, 5)
    world.restart_operator(down=30)
    world.run(TICK, 5)
    assert not world.changes
    world.run(600, 5)
    at = world.changes[0][0]
    assert at >= 60 + 600 + 30, "never early"
    assert at <= 600 + 30 + 3 * 60 + 3 * TICK, "what was waited before the restart counts"


def test_many_restarts_do_not_keep_a_deployment_up_for_ever() -> None:
    world = World(rule(scale_down_delay=600), replicas=5)
    for _ in range(12):
        world.run(300, 5)
        world.restart_operator(down=5)
    assert world.replicas == 1


def test_a_restart_keeps_the_delay_of_scaling_up() -> None:
    world = World(rule(scale_up_delay=100), replicas=1)
    world.run(90, 15)
    world.restart_operator()
    world.run(12, 15)
    assert world.replicas == 2


def test_a_long_outage_of_the_operator_is_not_taken_for_calm() -> None:
    world = World(rule(scale_down_delay=600), replicas=5)
    world.run(200, 5)
    world.restart_operator(down=3600)
    world.run(300, 5)
    assert not world.changes


@pytest.mark.parametrize(
    "written", [None, {}, "x", [1], {"enough": [1]}, {"seen": "soon"}, {"enough": {"a": 1}}, {"scaled": {}}]
)
def test_what_cannot_be_read_is_no_memory(written: Any) -> None:
    assert ScaleMemory.read(written) == ScaleMemory()


def test_little_is_written_while_nothing_changes() -> None:
    world = World(rule(scale_down_delay=86_400), replicas=5)
    world.run(3600, lambda now: 12 + int(now) % 5)
    assert world.writes <= 3600 / 60 + 2
    busy = World(rule(), replicas=5)
    busy.run(3600, 45)
    assert busy.writes <= 1


# Bounds and clocks


@pytest.mark.parametrize(("current", "expected"), [(0, 2), (1, 2), (2, 2), (6, 6), (9, 6)])
def test_a_manual_change_is_brought_back_between_the_bounds(current: int, expected: int) -> None:
    assert decide(rule(min=2, max=6), LoadHistory(TICK), current, START, ScaleMemory()).desired == expected


def test_a_clock_that_is_set_back_scales_nothing_down_early() -> None:
    world = World(rule(scale_down_delay=300), replicas=5)
    world.run(200, 5)
    world.now -= 7200
    world.run(290, 5)
    assert not world.changes


def test_the_history_is_bounded() -> None:
    world = World(rule(), replicas=1)
    world.run(7200, 5)
    assert len(world.history) <= 60 / TICK + 4


# Properties

rules = st.builds(
    lambda low, spread, target, tolerance, down: rule(
        min=low, max=low + spread, in_flight_per_replica=target, tolerance=tolerance, scale_down_delay=down
    ),
    st.integers(0, 3),
    st.integers(1, 10),
    st.integers(1, 40),
    st.floats(0, 0.5),
    st.sampled_from([0, 10, 100]),
)
reports = st.lists(
    st.tuples(st.none() | st.integers(0, 400), st.booleans(), st.integers(1, 30)), min_size=1, max_size=12
)


def ticks(given_reports: list[tuple[int | None, bool, int]]) -> Iterator[tuple[int | None, bool]]:
    for load, complete, times in given_reports:
        yield from [(load, complete)] * times


@given(rules, st.integers(1, 400), st.integers(1, 12))
def test_constant_load_settles_and_is_left_alone(rule: Autoscaling, load: int, replicas: int) -> None:
    world = World(rule, replicas)
    world.run(240, load)
    before = list(world.changes)
    world.run(240, load)
    assert world.changes == before
    capacity = world.replicas * rule.in_flight_per_replica * (1 + rule.tolerance)
    assert capacity >= load or world.replicas == rule.max


@given(rules, reports, st.integers(0, 12))
def test_always_within_the_bounds_and_never_down_without_a_known_window(
    rule: Autoscaling, given_reports: list[tuple[int | None, bool, int]], replicas: int
) -> None:
    world = World(rule, min(max(replicas, rule.min), rule.max))
    seen: list[tuple[float, int | None, bool]] = []
    for load, complete in ticks(given_reports):
        before = world.replicas
        world.tick(load, complete=complete)
        seen.append((world.now, load, complete))
        assert rule.min <= world.replicas <= rule.max
        if world.replicas < before:
            window = [each for each in seen if each[0] > world.now - 60]
            known = [load for _, load, complete in window if load is not None and complete]
            assert len(seen) * TICK >= 60 and len(known) * 2 >= len(window) - 1
            assert world.replicas >= math.ceil(sum(known) / len(known) / rule.in_flight_per_replica)


@given(rules, reports, st.integers(0, 200))
def test_a_restart_never_makes_it_scale_down_earlier(
    rule: Autoscaling, given_reports: list[tuple[int | None, bool, int]], at: int
) -> None:
    through, restarted = (World(rule, rule.max) for _ in range(2))
    for i, (load, complete) in enumerate(ticks(given_reports)):
        if i == at:
            restarted.restart_operator()
        through.tick(load, complete=complete)
        restarted.tick(load, complete=complete)
        if restarted.changes:
            break
    if restarted.changes and restarted.changes[0][1] < rule.max:
        assert through.changes and through.changes[0][0] <= restarted.changes[0][0]


@given(
    st.dictionaries(st.integers(0, 9), st.floats(1, 2e9)),
    st.none() | st.floats(1, 2e9),
    st.none() | st.floats(1, 2e9),
)
def test_what_is_written_is_never_bolder_than_the_memory(
    enough: dict[int, float], seen: float | None, more_since: float | None
) -> None:
    memory = ScaleMemory(enough, seen, more_since)
    written = ScaleMemory.read(memory.written())
    assert all(since >= enough[n] for n, since in written.enough.items())
    assert written.more_since == more_since
    assert not written.enough or (written.seen or 0) <= (seen or 0)
