"""performance.svg: comparisons with the figures that stand in benchmarks/results/."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from docs.pictures.drawing import picture, words

_RESULTS: Final = Path(__file__).parents[2] / "benchmarks" / "results"
_ROW: Final = 24
_LEFT: Final = 250
_WIDEST: Final = 420


class Bar(NamedTuple):
    name: str
    value: float
    ours: bool


def performance() -> str:
    parts: list[str] = []
    y = 30.0
    for title, bars in (
        (_ENGINE, _engine()),
        (f"{_ROUTER} of 2 KB", _router("2 KB | 373")),
        (f"{_ROUTER} of 64 KB", _router("64 KB | 610")),
        (_FLEET, _fleet()),
    ):
        parts.append(words(10, y, title, "bold", "start"))
        parts += _rows(bars, y + 14)
        y += _ROW * len(bars) + 54
    return picture(760, round(y) - 26, "Figures from benchmarks/results", parts)


_ENGINE: Final = "Engine on a 2-core CPU with AMX, 32 requests at once: output tokens/s (more is better)"
_ROUTER: Final = "CPU microseconds of the router (less is better), a request"
_FLEET: Final = "150 groups of prompts in a modelled fleet: end to end, p99, seconds (less is better)"
_NAMES: Final = {"prefix": "headwater", "least_loaded": "least loaded", "round_robin": "round robin"}
"""Of rules; those of others are rebuilt from what their makers publish."""


def _engine() -> list[Bar]:
    row = _row("engine_cpu.md", "| 32 concurrent | output tok/s |")
    return [Bar("headwater", float(row[2]), True), Bar("vLLM 0.32 for CPU", float(row[3]), False)]


def _router(begins: str) -> list[Bar]:
    row = _row("router_path.md", f"| per JSON request, {begins}")
    names = ("headwater", "smg 1.13", "vllm-router 0.1.17")
    return [Bar(name, float(row[n].replace(",", "")), n == 1) for n, name in enumerate(names, 1)]


def _fleet() -> list[Bar]:
    text = (_RESULTS / "fleet.md").read_text().partition("## 150 groups\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    values = {row[0].strip("`"): float(row[5]) for row in rows}
    bars = [Bar(_NAMES.get(name, name), value, name == "prefix") for name, value in values.items()]
    return sorted(bars, key=lambda each: each.value)


def _row(file: str, begins: str) -> list[str]:
    """Cells of the first line that begins so."""
    line = next(each for each in (_RESULTS / file).read_text().splitlines() if each.startswith(begins))
    return [cell.strip() for cell in line.strip("|").split("|")]


def _rows(bars: Sequence[Bar], top: float) -> list[str]:
    most = max(each.value for each in bars)
    parts = []
    for number, bar in enumerate(bars):
        y = top + _ROW * number
        width = max(2.0, _WIDEST * bar.value / most)
        style = "own" if bar.ours else "bar"
        parts.append(words(_LEFT - 10, y + 13, bar.name, "bold" if bar.ours else "", "end"))
        parts.append(f'<rect x="{_LEFT}" y="{y:g}" width="{width:.1f}" height="16" rx="3" class="{style}"/>')
        parts.append(words(_LEFT + width + 8, y + 13, f"{bar.value:,g}", "small", "start"))
    return parts
