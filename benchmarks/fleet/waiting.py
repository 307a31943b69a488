"""Overload and bursts with and without waiting in the router: who is refused, and how long the others take.

python -m benchmarks.fleet.waiting
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from benchmarks.fleet import router
from benchmarks.fleet.__main__ import HEAD, line, policies
from benchmarks.fleet.figures import figures_of
from benchmarks.fleet.hardware import H100_8B
from benchmarks.fleet.requests import Request, around, arrivals, fresh, shared
from benchmarks.fleet.simulation import Workload, simulate
from headwater_router.admission.room import WaitReason
from headwater_router.dispatch.waiting import Patience

SECONDS: Final = 60.0
Requests = Callable[[random.Random], Iterator[Request]]


def steady(rate: float, own: float, out: float) -> Requests:
    """So many requests a second with 40 prefixes; one of seven has five times as much of its own."""

    def generate(rng: random.Random) -> Iterator[Request]:
        for at in arrivals(rng, rate, SECONDS):
            system = shared(f"over {rng.randrange(40)}", 3000)
            size = own * (5 if rng.random() < 1 / 7 else 1)
            yield Request(at, system + fresh(rng, around(rng, size)), fresh(rng, around(rng, out)))

    return generate


def bursts(rng: random.Random) -> Iterator[Request]:
    """500 requests at once, some four times a minute."""
    for at in arrivals(rng, 1 / 15, SECONDS):
        for number in range(500):
            system = shared(f"burst {rng.randrange(20)}", 2000)
            yield Request(at + number / 2000, system + fresh(rng, around(rng, 500)), fresh(rng, around(rng, 300)))


FOUR: Final = (1.0,) * 4
SMALL: Final = replace(H100_8B, max_running=64, max_waiting=32)
"""As it is where 429 says that it is full."""
WORKLOADS: Final = (
    Workload("bursts, 64 places and 429", bursts, SMALL, FOUR),
    Workload("20 % too much, 64 places and 429", steady(40.0, 600, 300), SMALL, FOUR),
    Workload("KV full, no 429", steady(12.0, 2500, 500), H100_8B, FOUR),
)


def main() -> None:
    for workload in WORKLOADS:
        print(f"\n### {workload.name}\n\n{HEAD}", flush=True)
        for policy in ("prefix", "least_loaded"):
            for seconds in (0.0, 5.0, 10.0, 20.0, 60.0):
                router.PATIENCE[WaitReason.FULL] = Patience(1024 if seconds else 0, seconds)
                name = f"waits {seconds:g} s" if seconds else "sent at once"
                print(line(f"{policy}, {name}", figures_of(simulate(workload, partial(policies, policy)))), flush=True)


if __name__ == "__main__":
    main()
