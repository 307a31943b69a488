"""Context against requests at once, as SVG or PNG: how many of which length a replica of each backend holds."""

from math import log2
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from headwater.pick.capabilities import Capability
from headwater.pick.choice import Pick
from headwater.pick.layout import Layout
from headwater.pick.memory import plan_with
from headwater.pick.workload import Workload

_WIDTH: Final = 720
_HEIGHT: Final = 420
_LEFT: Final = 70
_BOTTOM: Final = 60
_COLOURS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")

Points = list[tuple[int, int]]


def lines(picked: Pick) -> dict[str, Points]:
    """For each backend that has a place: tokens of a request, and requests of that length that its replica runs."""
    shape, work = picked.shape, picked.workload
    most = min(shape.positions or 131_072, 1_048_576)
    found: dict[str, Points] = {}
    for place in picked.places:
        if place.plan is None:
            continue
        lengths = [2**n for n in range(9, 21) if 2**n <= most]
        points = [(tokens, _requests(work, picked, place.able, place.plan.layout, tokens)) for tokens in lengths]
        found[place.backend] = [point for point in points if point[1]]
    return found


def _requests(work: Workload, picked: Pick, able: Capability, layout: Layout, tokens: int) -> int:
    longer = work.model_copy(update={"input_tokens": tokens - 1, "output_tokens": 1, "shared_prefix": 0.0})
    plan = plan_with(longer, picked.shape, able, layout)
    return plan.requests if plan else 0


def write_plot(picked: Pick, path: Path) -> None:
    """In the format that the name ends with. Raises OSError; and ImportError where PNG needs what is not there."""
    title = f"{picked.shape.name} on {picked.workload.accelerator.title}"
    if path.suffix.lower() == ".png":
        _png(lines(picked), title, path)
    else:
        path.write_text(svg(lines(picked), title), encoding="utf-8")


def _png(found: dict[str, Points], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 100, _HEIGHT / 100), dpi=200, layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(found.items()):
        axes.plot(*zip(*points, strict=True), color=_COLOURS[number % len(_COLOURS)], label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(title=f"{title}: requests at once in a replica", xlabel="tokens of a request")
    axes.grid(alpha=0.3)
    if found:
        axes.legend()
    figure.savefig(path, format="png")


def svg(found: dict[str, Points], title: str) -> str:
    """Both axes by powers of two."""
    points = [point for each in found.values() for point in each] or [(512, 1)]
    columns = sorted({tokens for tokens, _ in points})
    highest = max(max(requests for _, requests in points), 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}: requests at once in a replica</text>',
    ]
    for tokens in columns:
        parts.append(_label(_x(tokens, columns), _HEIGHT - _BOTTOM + 20, f"{tokens:,}", "middle"))
    parts.append(_label((_WIDTH + _LEFT) / 2, _HEIGHT - 15, "tokens of a request", "middle"))
    for power in range(highest.bit_length()):
        y = _y(2**power, highest)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(_label(_LEFT - 8, y + 4, f"{2**power:,}", "end"))
    for number, (name, own) in enumerate(found.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{_x(tokens, columns):.0f},{_y(requests, highest):.0f}" for tokens, requests in own)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{_WIDTH - 130}" y="{50 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{text}</text>'


def _x(tokens: int, columns: list[int]) -> float:
    return _LEFT + 20 + (_WIDTH - _LEFT - 60) * columns.index(tokens) / max(len(columns) - 1, 1)


def _y(requests: int, highest: int) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - 40) * log2(requests) / log2(highest)
