"""Writes all pictures beside this file."""

from pathlib import Path
from typing import Final

from docs.pictures.architecture import architecture
from docs.pictures.bars import performance
from docs.pictures.demo import demo
from docs.pictures.page import page
from docs.pictures.screens import pick_screen, ps_screen, serve_screen, top_screen

FOLDER: Final = Path(__file__).parent
PICTURES: Final = {
    "architecture.svg": architecture,
    "demo.svg": demo,
    "front-page.svg": page,
    "performance.svg": performance,
    "pick.svg": pick_screen,
    "ps.svg": ps_screen,
    "serve.svg": serve_screen,
    "top.svg": top_screen,
}

if __name__ == "__main__":
    for name, make in PICTURES.items():
        (FOLDER / name).write_text(make())
