"""How many replicas a ModelDeployment should have, from the load that the gateway reports.

The load is the requests in flight and those that the gateway holds. `LoadHistory` keeps its samples, `decide` looks at
them over two windows and knows nothing of a cluster. What must survive a restart of the operator is its `ScaleMemory`:
for how long fewer replicas, or more, have been wanted.

Too many replicas cost money, too few cost answers. So what is only half known counts for scaling up and never down: a
report without one of the routers, a window with a gap in it. Time in which nothing was known counts for no delay.

All times are seconds since the epoch, for they outlive the process.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from headwater.resource import Autoscaling

_PANIC: Final = 2.0
"""The short window counts once it holds this many times the load that the replicas are there for."""
_GAP: Final = 2.5
"""Intervals between two samples that still make no gap: one of them may be missed."""
_MINUTE: Final = 60
"""What has held for less is not written down: it comes and goes, and each write costs a call of the API server."""


# What was seen


@dataclass(frozen=True, slots=True)
class Sample:
    time: float
    load: int
    """Requests in flight and held; at least so many, where it is not complete."""
    held: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Window:
    load: float
    """Mean; at least so much, where it is not complete. 0 without any sample."""
    complete: bool
    """Whether it is known for all of the time up to now."""


class LoadHistory:
    """Samples of one deployment's load, oldest first."""

    def __init__(self, interval: float) -> None:
        """`interval`: seconds from one sample to the next, if none is missed."""
        self._gap = interval * _GAP
        self._samples: deque[Sample] = deque()

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, time: float, in_flight: int, held: int, *, complete: bool, keep: float) -> None:
        """A look at the gateway; one that no router answered is no sample. `keep`: seconds of the longest window."""
        if self._samples and time <= self._samples[-1].time:
            self._samples.clear()  # the clock was set back: nothing can be said of what lies between
        self._samples.append(Sample(time, in_flight + held, held, complete))
        while self._samples[0].time < time - keep - self._gap:
            self._samples.popleft()

    def held(self, now: float) -> int:
        """Requests that wait for a replica at this moment, as far as is known."""
        last = self._samples[-1] if self._samples else None
        return last.held if last and 0 <= now - last.time <= self._gap else 0

    def window(self, now: float, seconds: float) -> Window:
        start = now - seconds
        seen = [sample for sample in self._samples if start < sample.time <= now]
        # Samples that know only of a part must not make the mean smaller.
        load = max(_mean(seen), _mean([sample for sample in seen if sample.complete]))
        return Window(load, self._covers(start, now))

    def _covers(self, start: float, now: float) -> bool:
        """Whether complete samples follow one another closely from `start` to `now`."""
        times = [s.time for s in self._samples if s.complete and start - self._gap <= s.time <= now]
        if not times or times[0] > start:
            return False
        return all(later - earlier <= self._gap for earlier, later in pairwise([*times, now]))


def _mean(samples: Sequence[Sample]) -> float:
    return sum(sample.load for sample in samples) / len(samples) if samples else 0.0


# What is remembered


@dataclass(frozen=True, slots=True)
class ScaleMemory:
    """What decisions need to know of earlier ones. The operator keeps it, ."""

    enough: Mapping[int, float] = field(default_factory=dict)
    """Numbers of replicas below the current one, and since when each has been enough. The time in which nothing was
    known is left out: these times are moved on by it."""
    seen: float | None = None
    """When the load was last known."""
    more_since: float | None = None
    """Since when more replicas have been wanted."""
    scaled: float | None = None
    """When the number was last changed by us."""

    def written(self) -> dict[str, Any]:
        """For the resource's status: changes so rarely that it can be written whenever it differs from what is there.

        It leaves out what is new, and is never bolder than the memory itself.
        """
        until = None if self.seen is None else self.seen // _MINUTE * _MINUTE
        enough = {str(n): math.ceil(since) for n, since in self.enough.items() if until and since <= until - _MINUTE}
        written = {
            "enough": enough,
            "seen": until if enough else None,
            "moreSince": self.more_since,
            "scaled": self.scaled,
        }
        return {name: value for name, value in written.items() if value}

    @classmethod
    def read(cls, written: Mapping[str, Any] | None) -> "ScaleMemory":
        """What `written` returned. What cannot be read is no memory: all delays begin anew."""
        try:
            known = dict(written or {})
            enough = {int(n): float(since) for n, since in known.get("enough", {}).items()}
            seen, more_since, scaled = (_time(known.get(name)) for name in ("seen", "moreSince", "scaled"))
        except (ValueError, TypeError, AttributeError):
            return cls()
        return cls(enough, seen, more_since, scaled)


def _time(value: Any) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class ScaleDecision:
    desired: int
    reason: str
    memory: ScaleMemory


# The decision


def decide(rule: Autoscaling, history: LoadHistory, current: int, now: float, memory: ScaleMemory) -> ScaleDecision:
    """How many replicas there should be instead of `current`, the number that the workload asks for now."""
    if (bounded := min(max(current, rule.min), rule.max)) != current:
        return _scaled(rule, bounded, f"{current} is outside of {rule.min} to {rule.max}", now, memory)
    if current == 0:
        return _from_zero(rule, history, now, memory)
    stable = history.window(now, rule.stable_window.total_seconds())
    short = history.window(now, rule.panic_window.total_seconds())
    panic = short.load >= _PANIC * current * rule.in_flight_per_replica
    load = max(stable.load, short.load) if panic else stable.load
    memory = _reconcile(rule, current, stable, short, now, memory)
    if _needed(rule, load) > current and load > current * rule.in_flight_per_replica * (1 + rule.tolerance):
        return _up(rule, current, load, panic, now, memory)
    memory = replace(memory, more_since=None)
    if not memory.enough:
        return _stay(current, _calm_reason(rule, current, stable, short), memory)
    return _down(rule, current, stable, now, memory)


def _from_zero(rule: Autoscaling, history: LoadHistory, now: float, memory: ScaleMemory) -> ScaleDecision:
    held = history.held(now)
    if not held:
        return _stay(0, "nobody asks", memory)
    desired = min(max(_needed(rule, held), 1), rule.max)
    return _scaled(rule, desired, f"the gateway holds {held}", now, memory)


def _up(rule: Autoscaling, current: int, load: float, panic: bool, now: float, memory: ScaleMemory) -> ScaleDecision:
    needed = _needed(rule, load)
    asked = f"{'a burst of ' if panic else ''}{load:.1f} in flight needs {needed}"
    if current == rule.max:
        return _stay(current, f"{asked}, and {rule.max} is the most", replace(memory, more_since=None))
    since = now if memory.more_since is None else min(memory.more_since, now)
    left = rule.scale_up_delay.total_seconds() - (now - since)
    if left > 0:
        return _stay(current, f"{asked}; more in {left:.0f} s", replace(memory, more_since=since))
    return _scaled(rule, min(needed, rule.max), asked, now, memory)


def _down(rule: Autoscaling, current: int, stable: Window, now: float, memory: ScaleMemory) -> ScaleDecision:
    """Down to the number that has been enough all through the delay, even where less is enough by now."""
    if memory.seen != now:
        return _stay(current, "the load is not known all the time; no scaling down", memory)
    delay = rule.scale_down_delay.total_seconds()
    waited = [n for n, since in memory.enough.items() if now - since >= delay]
    if waited:
        return _scaled(rule, min(waited), f"{stable.load:.1f} in flight needs {min(waited)}", now, memory)
    left = delay - (now - min(memory.enough.values()))
    return _stay(current, f"{stable.load:.1f} in flight needs fewer; {max(memory.enough)} in {left:.0f} s", memory)


def _reconcile(
    rule: Autoscaling, current: int, stable: Window, short: Window, now: float, memory: ScaleMemory
) -> ScaleMemory:
    """Take in what the windows say about fewer replicas being enough."""
    load = max(stable.load, short.load)
    needed = max(_needed(rule, load), rule.min)
    if load >= current * rule.in_flight_per_replica * (1 - rule.tolerance):
        needed = current
    # Even a half known load shows what is not enough.
    enough = {n: since for n, since in memory.enough.items() if needed <= n < current}
    if not (stable.complete and short.complete):
        return replace(memory, enough=enough)
    if needed < current and needed not in enough:
        # Where even fewer have been enough so far, this number has been as well.
        enough[needed] = min((since for n, since in memory.enough.items() if n < needed), default=now)
    unknown = now - rule.stable_window.total_seconds() - memory.seen if memory.seen is not None else 0.0
    enough = {n: min(since + max(unknown, 0.0), now) for n, since in enough.items()}
    return replace(memory, enough=enough, seen=now)


def _needed(rule: Autoscaling, load: float) -> int:
    return math.ceil(load / rule.in_flight_per_replica)


def _calm_reason(rule: Autoscaling, current: int, stable: Window, short: Window) -> str:
    if not (stable.complete and short.complete):
        return "the load is not known all the time; no scaling down"
    return f"{stable.load:.1f} in flight, and {current} are there for {current * rule.in_flight_per_replica}"


def _stay(current: int, reason: str, memory: ScaleMemory) -> ScaleDecision:
    return ScaleDecision(current, reason, memory)


def _scaled(rule: Autoscaling, desired: int, reason: str, now: float, memory: ScaleMemory) -> ScaleDecision:
    enough = {n: since for n, since in memory.enough.items() if rule.min <= n < desired}
    return ScaleDecision(desired, reason, replace(memory, enough=enough, more_since=None, scaled=now))
