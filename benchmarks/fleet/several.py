"""One router, and several that tell one another what they do: without loss, with a tenth of the messages lost, and with
Redis gone.

python -m benchmarks.fleet.several [--routers 8] [--policy prefix] [--workloads "hot prefix" unique]
"""

import argparse
from functools import partial
from typing import Final

from benchmarks.fleet.__main__ import policies
from benchmarks.fleet.channel import Link
from benchmarks.fleet.figures import Figures, figures_of
from benchmarks.fleet.simulation import simulate
from benchmarks.fleet.workloads import ALL

_LINKS: Final = {"together": Link(), "a tenth lost": Link(loss=0.1), "Redis gone": None}


def line(workload: str, name: str, figures: Figures, one: Figures) -> str:
    ttft = "–"
    if figures.ttft_p99 is not None and one.ttft_p99:
        ttft = f"{figures.ttft_p99:.3f} | {figures.ttft_p99 / one.ttft_p99:.2f}"
    mean = f"{figures.mean:.2f} | {figures.mean / one.mean:.2f}"
    return f"| {workload} | {name} | {100 * figures.cached:.1f} % | {ttft} | {mean} | {figures.p99:.2f} |"


def main() -> None:
    names = [each.name for each in ALL]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routers", type=int, default=8)
    parser.add_argument("--policy", default="prefix", help="one of ours, with its objective behind a space")
    parser.add_argument("--workloads", nargs="+", default=names, choices=names, metavar="NAME")
    options = parser.parse_args()
    make = partial(policies, options.policy)
    print("| workload | routers | cached | TTFT p99 s | of one's | E2E mean s | of one's | p99 s |")
    print("|---|---|---|---|---|---|---|---|")
    for workload in (each for each in ALL if each.name in options.workloads):
        one = figures_of(simulate(workload, make))
        print(line(workload.name, "one", one, one), flush=True)
        for name, link in _LINKS.items():
            found = figures_of(simulate(workload, make, routers=options.routers, link=link))
            print(line(workload.name, f"{options.routers}, {name}", found, one), flush=True)


if __name__ == "__main__":
    main()
