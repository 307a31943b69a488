"""One router, and several that tell one another what they do: without loss, with messages lost, and with Redis gone.

python -m benchmarks.fleet.several [--routers 8] [--policy prefix] [--seeds 3] [--since 10] [--workloads RAG unique]

A 99th percentile of one run is a matter of a few requests, which chance deals out: the same traffic through another
course of chance has another. So each line is of all requests of several seeds together, each with its own traffic, the
same for one router as for several; and the ratio stands there with that of each seed by itself, from the least to the
most.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Final

from benchmarks.fleet.__main__ import policies
from benchmarks.fleet.channel import Link
from benchmarks.fleet.figures import Seen, pooled, quantile, seen_of
from benchmarks.fleet.simulation import Workload, simulate
from benchmarks.fleet.workloads import ALL

LINKS: Final = {
    "together": Link(),
    "one of fifty lost": Link(loss=0.02),
    "a tenth lost": Link(loss=0.1),
    "Redis gone": None,
}
HEAD: Final = """| workload | routers | cached | TTFT p99 s | of one's | by seed | E2E mean s | of one's | p99 s |
|---|---|---|---|---|---|---|---|---|"""


def line(workload: str, name: str, several: Sequence[Seen], one: Sequence[Seen]) -> str:
    """`several`, `one`: of the same seeds."""
    found, beside = pooled(several), pooled(one)
    ttft = "– | – | –"
    if found.ttft_p99 is not None and beside.ttft_p99:
        ttft = f"{found.ttft_p99:.3f} | {found.ttft_p99 / beside.ttft_p99:.2f} | {_spread(several, one)}"
    mean = f"{found.mean:.2f} | {found.mean / beside.mean:.2f}"
    return f"| {workload} | {name} | {100 * found.cached:.1f} % | {ttft} | {mean} | {found.p99:.2f} |"


def _spread(several: Sequence[Seen], one: Sequence[Seen]) -> str:
    """Of each seed's 99th percentile over that of one router; where they are the same, of one router's over all."""
    if several is one:
        all_of_them = pooled(one).ttft_p99 or 1.0
        ratios = [_late(each) / all_of_them for each in one]
    else:
        ratios = [_late(each) / _late(alone) for each, alone in zip(several, one, strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _late(seen: Seen) -> float:
    return quantile(seen.ttfts, 0.99) or 1.0


def main() -> None:
    names = [each.name for each in ALL]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routers", type=int, default=8)
    parser.add_argument("--policy", default="prefix", help="one of ours, with its objective behind a space")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 on")
    parser.add_argument("--workloads", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--links", nargs="+", default=list(LINKS), choices=list(LINKS), metavar="NAME")
    parser.add_argument(
        "--since", type=float, default=0.0, help="only what came from this second on; at first nobody knows anything"
    )
    options = parser.parse_args()
    make, seeds = partial(policies, options.policy), range(1, options.seeds + 1)

    def runs(workload: Workload, routers: int, link: Link | None) -> list[Seen]:
        played = (simulate(workload, make, routers=routers, link=link, seed=seed) for seed in seeds)
        return [seen_of(run, options.since) for run in played]

    print(HEAD)
    for workload in (each for each in ALL if each.name in options.workloads):
        one = runs(workload, 1, None)
        print(line(workload.name, "one", one, one), flush=True)
        for name in options.links:
            found = runs(workload, options.routers, LINKS[name])
            print(line(workload.name, f"{options.routers}, {name}", found, one), flush=True)


if __name__ == "__main__":
    main()
