"""What stands on a terminal's screen, by pyte, as rich draws it."""

from itertools import groupby
from typing import Final

import pyte
from pyte.screens import Char
from rich.style import Style
from rich.text import Text

_COLORS: Final = {"default": None, "brown": "yellow"}
"""What pyte calls otherwise than rich."""


def lines(screen: pyte.Screen) -> list[Text]:
    return [_line([screen.buffer[row][column] for column in range(screen.columns)]) for row in range(screen.lines)]


def _line(cells: list[Char]) -> Text:
    text = Text()
    for style, run in groupby(cells, key=_style):
        text.append("".join(cell.data for cell in run), style)
    text.rstrip()
    return text


def _style(cell: Char) -> Style:
    color = _COLORS.get(cell.fg, cell.fg if not _is_hex(cell.fg) else f"#{cell.fg}")
    return Style(color=color, bold=cell.bold or None)


def _is_hex(color: str) -> bool:
    return len(color) == 6 and all(each in "0123456789abcdef" for each in color)
