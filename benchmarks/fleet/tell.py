"""From the figures of a run to tables and a picture.

    python -m benchmarks.fleet --json fleet.json && python -m benchmarks.fleet.tell fleet.json

writes benchmarks/results/fleet.md, the table between two comments in docs/performance.md, and, where matplotlib is
installed (the extra `bench`), fleet.svg and fleet.png beside the results. Of several files, the last one wins.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.fleet.__main__ import HEAD, line
from benchmarks.fleet.figures import Figures
from benchmarks.fleet.workloads import ALL

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results"
OURS: Final = "prefix"
_CLOSE: Final = 1.02
"""Times the best, up to which it is as good."""
_BEGIN, _END = "<!-- fleet: made by python -m benchmarks.fleet.tell -->", "<!-- fleet: end -->"

Told = Mapping[str, Mapping[str, Figures]]
"""By workload and policy."""


class Best(NamedTuple):
    policy: str
    value: float


def read(paths: list[Path]) -> dict[str, dict[str, Figures]]:
    told: dict[str, dict[str, Figures]] = {}
    for path in paths:
        for workload, by_policy in json.loads(path.read_text()).items():
            for policy, figures in by_policy.items():
                told.setdefault(workload, {})[policy] = Figures(**figures)
    return {each.name: told[each.name] for each in ALL if each.name in told}


def best(by_policy: Mapping[str, Figures], name: str, *, most: bool = False) -> Best:
    """Of all but ours, whatever its objective."""
    others = {policy: figures for policy, figures in by_policy.items() if policy.partition(" ")[0] != OURS}
    values = {policy: getattr(figures, name) for policy, figures in others.items()}
    chosen = (max if most else min)(values, key=lambda policy: values[policy])
    return Best(chosen, values[chosen])


def summary(told: Told) -> str:
    rows = [
        "| workload | E2E mean s | best other | ratio | E2E p99 s | best other | ratio | goodput/s | best other |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for workload, by_policy in told.items():
        ours = by_policy[OURS]
        cells = [workload]
        for name in ("mean", "p99"):
            other = best(by_policy, name)
            ratio = getattr(ours, name) / other.value
            shown = f"{ratio:.2f}" if ratio <= _CLOSE else f"**{ratio:.2f}**"
            cells += [f"{getattr(ours, name):.2f}", f"{other.value:.2f} ({other.policy})", shown]
        other = best(by_policy, "goodput", most=True)
        cells += [f"{ours.goodput:.2f}", f"{other.value:.2f} ({other.policy})"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def results(told: Told) -> str:
    parts = [(Path(__file__).parent / "results.md").read_text().rstrip(), summary(told)]
    for workload, by_policy in told.items():
        requests = by_policy[OURS].requests
        rows = [line(policy, figures) for policy, figures in by_policy.items()]
        parts.append(f"## {workload}\n\n{requests} requests.\n\n{HEAD}\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def picture(told: Told, path: Path) -> None:
    """How much longer each policy's answers take than the best one's, by workload."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "fleet"
    from matplotlib import pyplot

    first = next(iter(told.values()))
    policies = [OURS, *(policy for policy in first if policy.partition(" ")[0] != OURS)]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 0.42 * len(told) + 1.5), sharey=True, layout="constrained")
    for axis, name, title in zip(axes, ("mean", "p99"), ("mean", "99th percentile"), strict=True):
        for row, by_policy in enumerate(told.values()):
            least = min(getattr(each, name) for each in by_policy.values())
            for policy in policies:
                ratio = min(getattr(by_policy[policy], name) / least, 4.0)
                mark = (
                    {"marker": "D", "color": "black", "zorder": 3} if policy == OURS else {"marker": "o", "alpha": 0.7}
                )
                color = {} if policy == OURS else {"color": f"C{policies.index(policy) - 1}"}
                axis.scatter(ratio, row, label=policy if row == 0 else None, **mark, **color)
        axis.set(title=f"end to end, {title}, over the best", xscale="log", xlim=(0.97, 4.2))
        axis.set_xticks([1, 1.2, 1.5, 2, 3, 4], ["1", "1.2", "1.5", "2", "3", "4 or more"], minor=False)
        axis.minorticks_off()
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(told)), list(told))
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    for ending in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{ending}"), metadata={"Date": None} if ending == "svg" else None)


def main() -> None:
    told = read([Path(name) for name in sys.argv[1:]])
    (RESULTS / "fleet.md").write_text(results(told))
    page = ROOT / "docs" / "performance.md"
    made = f"{_BEGIN}\n\n{summary(told)}\n\n{_END}"
    page.write_text(
        re.sub(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", made.replace("\\", ""), page.read_text(), flags=re.DOTALL)
    )
    try:
        picture(told, RESULTS / "fleet")
    except ModuleNotFoundError:
        print("no picture: matplotlib is missing; it is in the extra `bench`", file=sys.stderr)
    print("README.md shows some of it: python -m docs.pictures draws that anew, and the sentence below is by hand")


if __name__ == "__main__":
    main()
