"""Pictures of a terminal, by rich, without its fonts from a foreign host. Their ground is dark on any page."""

import io
import re
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

_STYLE: Final = """\
<style>
.t-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px }}
.t-title {{ font-family: system-ui, sans-serif; font-size: 16px }}
{styles}
</style>
"""
_WINDOW: Final = (
    '<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">\n'
    + _STYLE
    + """\
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""
)
_STRIP: Final = _STYLE + "{backgrounds}\n<g class='{unique_id}-matrix'>{matrix}</g>\n"


def window(title: str, lines: Sequence[Text], width: int) -> str:
    return _drawn(title, lines, width, _WINDOW)


def strip(lines: Sequence[Text], width: int) -> str:
    """The same without a frame."""
    return _drawn("", lines, width, _STRIP)


def _drawn(title: str, texts: Sequence[Text], width: int, form: str) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for text in texts:
        console.print(text, no_wrap=True, crop=True)
    made = console.export_svg(title=title, theme=MONOKAI, code_format=form, unique_id="t")
    # No text leaves its line, so none need be clipped to it; and ends of lines need not be drawn.
    made = re.sub(r' clip-path="[^"]*"|<text [^>]*>\n</text>', "", made)
    return re.sub(r"^\s+|\s+$", "", made, flags=re.MULTILINE) + "\n"
