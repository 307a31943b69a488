"""What drawn pictures have in common: boxes, arrows and words, in colours that follow the reader's light or dark."""

from collections.abc import Iterable
from html import escape
from typing import Final

_STYLE: Final = """\
<style>
svg { --ink: #1f2933; --faint: #62707f; --edge: #9aa8b5; --ground: #f3f6f8; --ours: #0b7285; --mild: #d5eef2 }
@media (prefers-color-scheme: dark) {
svg { --ink: #e6edf3; --faint: #9aa8b5; --edge: #5c6b78; --ground: #1b232b; --ours: #3bc9db; --mild: #10404a }
}
text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif; font-size: 14px; fill: var(--ink) }
.small { font-size: 12px; fill: var(--faint) }
.bold { font-weight: 600 }
rect { fill: var(--ground); stroke: var(--edge) }
.ours { fill: var(--mild); stroke: var(--ours) }
.bar { fill: var(--edge); stroke: none }
.own { fill: var(--ours); stroke: none }
path { fill: none; stroke: var(--edge); stroke-width: 1.5; marker-end: url(#end) }
.told { stroke-dasharray: 4 4 }
marker path { fill: var(--edge); stroke: none }
</style>
<defs><marker id="end" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">
<path d="M0 0L8 4L0 8z"/></marker></defs>
"""


def picture(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">\n'
    return f"{head}<title>{escape(title)}</title>\n{_STYLE}" + "\n".join(parts) + "\n</svg>\n"


def words(x: float, y: float, text: str, style: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'


def box(x: float, y: float, width: float, height: float, lines: Iterable[str], style: str = "") -> str:
    """The first line is its name."""
    name, *others = lines
    first = y + height / 2 + 5 - 9 * len(others)
    inside = [words(x + width / 2, first, name, "bold")]
    inside += [words(x + width / 2, first + 18 * number, line, "small") for number, line in enumerate(others, 1)]
    rect = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" class="{style}"/>'
    return "\n".join([rect, *inside])


def arrow(*points: tuple[float, float], told: bool = False) -> str:
    """`told`: knowledge goes there, no request."""
    way = "L".join(f"{x:g} {y:g}" for x, y in points)
    style = ' class="told"' if told else ""
    return f'<path d="M{way}"{style}/>'
