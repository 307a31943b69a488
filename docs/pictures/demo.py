"""demo.svg: the recording of `make demo`, played in a terminal's window."""

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

import pyte
from rich.text import Text

from docs.pictures.emulator import lines
from docs.pictures.record import CAST
from docs.pictures.terminal import strip

_LONGEST_PAUSE: Final = 1.0
_SPEED: Final = 2.0
_SHORTEST_FRAME: Final = 1.0
_LAST_FRAME: Final = 8.0
"""Seconds; frames are told in those of the recording."""
_LINE: Final = 24.4
_COLUMN: Final = 12.2
"""Units of a character, as rich draws it."""
_FORM: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.film {{ transform: translateY({last}px) }}
@media (prefers-reduced-motion: no-preference) {{ .film {{ animation: play {seconds:.1f}s step-end infinite }} }}
@keyframes play {{ {frames} }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#0c0c0c"/>
<g transform="translate(26,22)"><circle r="7" fill="#ff5f57"/><circle cx="22" r="7" fill="#febc2e"/>
<circle cx="44" r="7" fill="#28c840"/></g>
<svg x="9" y="41" width="{inner_width}" height="{inner_height}"><g class="film">
{strip}</g></svg>
</svg>
"""


class Frame(NamedTuple):
    at: float
    """Seconds after the first one, without what pauses are longer than they need to be."""
    lines: list[Text]


def demo() -> str:
    """SVG. Who wants no motion sees the last frame."""
    header, *events = (json.loads(line) for line in CAST.read_text().splitlines())
    frames = list(_frames(header["width"], header["height"], events))
    seconds = frames[-1].at / _SPEED + _LAST_FRAME
    height = header["height"] * _LINE
    moves = [
        f"{100 * frame.at / _SPEED / seconds:.2f}% {{ transform: translateY({-number * height:g}px) }}"
        for number, frame in enumerate(frames)
    ]
    return _FORM.format(
        width=round(header["width"] * _COLUMN) + 18,
        height=round(height) + 50,
        inner_width=round(header["width"] * _COLUMN),
        inner_height=f"{height:g}",
        seconds=seconds,
        frames=" ".join(moves),
        last=f"-{(len(frames) - 1) * height:g}",
        strip=strip([line for frame in frames for line in frame.lines], header["width"]),
    )


def _frames(width: int, height: int, events: list[tuple[float, str, str]]) -> Iterator[Frame]:
    """What is on the screen, each time that it has changed and the last frame is a while ago."""
    screen = pyte.Screen(width, height)
    stream = pyte.Stream(screen)
    now, before, shown_at = 0.0, 0.0, -_SHORTEST_FRAME
    shown: list[str] = []
    for at, _, written in events:
        now += min(at - before, _LONGEST_PAUSE)
        before = at
        stream.feed(written)
        if screen.display != shown and now - shown_at >= _SHORTEST_FRAME:
            shown, shown_at = list(screen.display), now
            yield Frame(now, lines(screen))
    yield Frame(now, lines(screen))
