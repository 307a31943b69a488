"""Every workload through every policy, as tables.

python -m benchmarks.fleet [--workloads "hot prefix" unique] [--policies prefix dynamo] [--seeds 3] [--json FILE]
python -m benchmarks.fleet --trace FILE --shape mooncake [--engines 8] [--minutes 20]
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from math import inf
from pathlib import Path

from benchmarks.fleet import peers
from benchmarks.fleet.figures import Figures, pooled, seen_of
from benchmarks.fleet.requests import Request
from benchmarks.fleet.router import PROBE_SECONDS
from benchmarks.fleet.simulation import Workload, simulate
from benchmarks.fleet.traces import Shape, requests_of
from benchmarks.fleet.workloads import ALL
from headwater_router.index import PrefixIndex
from headwater_router.picker import POLICIES
from headwater_router.picker.objective import Objective
from headwater_router.picker.policies import Policies

OURS = ("prefix", "prefix first-token", "prefix throughput", "least_loaded", "round_robin")


def policies(name: str, rng: random.Random) -> Policies:
    policy, _, objective = name.partition(" ")
    if policy in POLICIES:
        return Policies(policy, PrefixIndex(), rng, Objective(objective or Objective.LATENCY))
    return peers.policies_of(name, rng)


def line(name: str, figures: Figures) -> str:
    def shown(value: float | None, digits: int, scale: float = 1.0) -> str:
        return "–" if value is None else f"{value * scale:.{digits}f}"

    cells = (
        f"`{name}`",
        shown(figures.ttft_p50, 3),
        shown(figures.ttft_p99, 2),
        shown(figures.token_p99, 1, 1000),
        shown(figures.mean, 2),
        shown(figures.p99, 2),
        shown(figures.goodput, 2),
        str(figures.refused),
        f"{100 * figures.cached:.0f} %",
        shown(figures.imbalance, 2),
    )
    return f"| {' | '.join(cells)} |"


HEAD = """| policy | TTFT p50 s | p99 s | TPOT p99 ms | E2E mean s | p99 s | goodput/s | refused | cached | imbalance |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [each.name for each in ALL]
    parser.add_argument("--workloads", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument(
        "--policies", nargs="+", default=[*OURS, *peers.PEERS], choices=[*OURS, *peers.PEERS], metavar="NAME"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="so many, from 1 on: all their requests together make a row"
    )
    parser.add_argument("--json", type=Path, help="to write all figures to")
    parser.add_argument("--trace", type=Path, help="traffic from a file instead, see traces.py")
    parser.add_argument("--shape", type=Shape, default=Shape.MOONCAKE, choices=list(Shape), help="of that file")
    parser.add_argument("--per-second", type=float, default=1.0, help="conversations that begin, where it has no times")
    parser.add_argument("--minutes", type=float, default=inf, help="of its beginning; else all of it")
    parser.add_argument("--engines", type=int, default=8, help="for the traffic of a file")
    options = parser.parse_args()
    chosen = [each for each in ALL if each.name in options.workloads]
    if options.trace is not None:
        chosen = [Workload(options.trace.name, partial(beginning, options), speeds=(1.0,) * options.engines)]
    found: dict[str, dict[str, Figures]] = {}
    for workload in chosen:
        found[workload.name] = tabulate(workload, options.policies, range(1, options.seeds + 1))
    if options.json is not None:
        told = {name: {policy: each.as_dict() for policy, each in by.items()} for name, by in found.items()}
        options.json.write_text(json.dumps(told, indent=1))


def beginning(options: argparse.Namespace, rng: random.Random) -> Iterator[Request]:
    """Of the traffic in a file."""
    requests = requests_of(options.trace, options.shape, rng, options.per_second)
    return takewhile(lambda request: request.at < 60 * options.minutes, requests)


def tabulate(workload: Workload, names: list[str], seeds: Sequence[int]) -> dict[str, Figures]:
    print(f"\n### {workload.name}\n\n{HEAD}", flush=True)
    found = {}
    started = time.process_time()
    for name in names:
        every = peers.PROBE_SECONDS.get(name, PROBE_SECONDS)
        make = partial(policies, name)
        found[name] = pooled([seen_of(simulate(workload, make, probe_seconds=every, seed=seed)) for seed in seeds])
        print(line(name, found[name]), flush=True)
    requests = found[names[0]].requests
    print(f"\n{requests} requests; {time.process_time() - started:.0f} s of CPU.", flush=True)
    return found


if __name__ == "__main__":
    main()
