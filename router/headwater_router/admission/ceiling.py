"""How many requests an engine runs at once, and whether it has room for one more.

An engine has two limits: places for requests (`max_num_seqs`, `max_running_requests`), and memory for their KV. What is
beyond either waits in its own queue, behind whatever came before, until that is full as well and it turns requests
down. A router that knows the limits keeps such requests itself, and still has the choice when a place gets free
anywhere (`admission.room`).

The places are known in three ways, of which the least counts:

- *Told*: a gauge of the engine says how many there are.
- *Seen*: requests wait there, and as many run at one report as at the next two. Few that run say nothing: while a long
  prompt is computed, others wait. It is forgotten with the first report that nobody waits.
- *Turned down*: the engine refused a request while so many were there. This is put to the test slowly, by one more each
  time that as many were answered (additive increase, as in TCP).

Beside those that run, a few may wait in the engine: it must not lack one while the router hears of an end. Memory
counts as full a little before it is, once requests had to wait for it: what runs there grows, and an engine without
room throws somebody out, to compute it again later.

That prompts wait to be computed while there are places is none of this: an engine takes several into one step, and
would idle without.
"""

import math
from dataclasses import dataclass
from typing import Final

from headwater.backends.metrics import Adapters, TokenTimes

KV_FULL: Final = 0.95
"""Share of the KV memory."""
_KV_CROWDED: Final = 0.9
"""From here on it costs the others something that one more takes."""
_KV_EASY: Final = 0.8
"""Below it nobody has to wait for memory any more."""
_ALIKE: Final = 2
"""Reports that say the same as the one before."""
_FEW: Final = 8
"""Running requests."""
_SPARE: Final = 2
"""Requests that may wait in an engine, and one more for each `_SPARE_SHARE` that it runs."""
_SPARE_SHARE: Final = 16


@dataclass(frozen=True, slots=True)
class Report:
    """What an engine's gauges say. None: it has no such gauge."""

    running: int | None = None
    waiting: int | None = None
    cache_usage: float | None = None
    """0 to 1."""
    most_running: int | None = None
    adapters: Adapters | None = None
    token_times: TokenTimes | None = None


SILENCE: Final = Report()


@dataclass(slots=True)
class Ceiling:
    """Of one engine. `there`: requests that are there now, ours and those of others. `kv_tokens`: those of ours that
    take memory there."""

    kv_capacity: int = 0
    """Tokens that its memory holds; 0: it does not say."""
    bounded: bool = False
    """Whether it may have no room at all."""
    tight: bool = False
    """Whether its memory may soon be full."""
    _report: Report = SILENCE
    _kv_tokens: int = 0
    """At that report."""
    _alike: int = 0
    _seen: int | None = None
    _refused_at: float = math.inf
    _most: float = math.inf
    """Requests that may be there."""
    _short_of_memory: bool = False

    @property
    def places(self) -> int | None:
        """Requests that it runs at once; None where that is not known."""
        told, seen = self._report.most_running, self._seen
        return seen if told is None else told if seen is None else min(told, seen)

    def has_room(self, there: int, kv_tokens: int) -> bool:
        if not there or not self.bounded:
            return True  # Whatever is believed of one that has nothing to do.
        if there >= self._most:
            return False
        return not self._short_of_memory or self.kv_usage(kv_tokens) < KV_FULL or self._has_nobody_waiting(there)

    def kv_usage(self, kv_tokens: int) -> float:
        """Share of its memory that should be taken now: what it said, and what came and went since."""
        usage = self._report.cache_usage or 0.0
        return usage + (kv_tokens - self._kv_tokens) / self.kv_capacity if self.kv_capacity else usage

    def lacking(self, kv_tokens: int, more: float) -> float:
        """Of a tenth of its memory, how much would be missing to keep a tenth free with so many tokens more."""
        share = more / self.kv_capacity if self.kv_capacity else 0.0
        return max(0.0, (self.kv_usage(kv_tokens) + share - _KV_CROWDED) / (1 - _KV_CROWDED))

    def reported(self, report: Report, kv_tokens: int) -> None:
        """Its gauges were read."""
        before, self._report, self._kv_tokens = self._report, report, kv_tokens
        waits = bool(report.waiting)
        self._alike = self._alike + 1 if waits and report.running == before.running else 0
        if not waits:
            self._seen = None
            if report.waiting is not None and (report.running or 0) < self._refused_at:
                self._refused_at = math.inf
        elif self._alike >= _ALIKE and report.running is not None and report.running >= _FEW:
            self._seen = report.running
        usage = report.cache_usage
        if usage is None or usage < _KV_EASY:
            self._short_of_memory = False
        elif waits and usage >= KV_FULL:
            self._short_of_memory = True
        self._settle()

    def turned_down(self, there: int) -> None:
        """It refused a request, while so many others were there. If there were none, it was for something else."""
        if there:
            self._refused_at = min(self._refused_at, there)
            self._settle()

    def answered(self, there: int) -> None:
        """It answered one, while so many others were there."""
        if self._refused_at < math.inf and there + 1 >= math.floor(self._refused_at):
            self._refused_at += 1 / self._refused_at
            self._settle()

    def _settle(self) -> None:
        places = self.places
        beside = math.inf if places is None else places + _SPARE + places // _SPARE_SHARE
        refused_at = self._refused_at if self._refused_at == math.inf else math.floor(self._refused_at)
        self._most = min(beside, refused_at)
        self.bounded = self._short_of_memory or self._most < math.inf
        self.tight = (self._report.cache_usage or 0.0) >= _KV_EASY

    def _has_nobody_waiting(self, there: int) -> bool:
        """What looks like full memory may be prefixes that it would let go: one more will show."""
        report = self._report
        return not report.waiting and report.running is not None and there <= report.running
