"""The measured over the floor, as a picture: bars of what each size of batch reached, from the JSON of a run.

python benchmarks/gpu/plot.py gpu-results          # step.json and serve.json there become gpu.svg
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BAR, GAP, LEFT, TOP, WIDTH = 16, 6, 210, 40, 520


class Bar(NamedTuple):
    name: str
    value: float
    most: float
    """What the whole width stands for."""
    label: str


def bars_of(step: dict[str, object] | None, serve: dict[str, object] | None) -> list[Bar]:
    """Of a step: its floor, as a share of what it took. Of serving: output tokens a second, beside the best."""
    bars = []
    for row in _rows(step):
        share = float(row["floor ms"]) / float(row["step ms"])
        bars.append(Bar(f"decode, {row['sequences']} sequences", share, 1.0, f"{share:.0%} of the floor's rate"))
    rates = [float(row["output tok/s"]) for row in _rows(serve)]
    for row, rate in zip(_rows(serve), rates, strict=True):
        bars.append(Bar(f"{row['load']}, {row['concurrent']} at once", rate, max(rates), f"{rate:.0f} tokens/s"))
    return bars


def svg(title: str, bars: Sequence[Bar]) -> str:
    height = TOP + len(bars) * (BAR + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 160}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<text x="8" y="20" font-size="14">{_escaped(title)}</text>',
    ]
    for place, bar in enumerate(bars):
        y = TOP + place * (BAR + GAP)
        width = WIDTH * bar.value / bar.most
        lines.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{_escaped(bar.name)}</text>')
        lines.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="#4477aa"/>')
        lines.append(f'<text x="{LEFT + width + 6:.1f}" y="{y + 12}">{_escaped(bar.label)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _rows(report: dict[str, object] | None) -> list[dict[str, str]]:
    return report["rows"] if report else []  # type: ignore[return-value]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def main() -> None:
    folder = Path(sys.argv[1])
    found = [
        json.loads(path.read_text()) if (path := folder / f"{name}.json").exists() else None
        for name in ("step", "serve")
    ]
    machine = next((report["machine"]["gpu"] for report in found if report), "no results")
    (folder / "gpu.svg").write_text(svg(f"Llama-3.1-8B, random weights, bfloat16, {machine}", bars_of(*found)))


if __name__ == "__main__":
    main()
