"""The pictures of README and docs/ are what their scripts make, of what the commands print now."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from docs.pictures.__main__ import FOLDER, PICTURES

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_its_script_makes(name: str) -> None:
    same = PICTURES[name]() == (FOLDER / name).read_text()
    assert same, (
        f"docs/pictures/{name} shows something else: look at what python -m docs.pictures writes, and commit it"
    )


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_whole_and_asks_nobody_for_more(name: str) -> None:
    text = (FOLDER / name).read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and root.get("viewBox")
    loads = [each for each in root.iter() if {"src", "{http://www.w3.org/1999/xlink}href"} & each.attrib.keys()]
    assert not loads and "@import" not in text and "url(http" not in text
    assert not list(root.iter(f"{SVG}script"))


@pytest.mark.parametrize("name", ["architecture.svg", "performance.svg"])
def test_a_drawing_has_colours_for_a_dark_page(name: str) -> None:
    text = (FOLDER / name).read_text()
    light, dark = re.findall(r"svg \{ (--.*?)\}", text)
    assert "@media (prefers-color-scheme: dark)" in text
    assert re.findall(r"--\w+", light) == re.findall(r"--\w+", dark)
    assert not re.findall(r'(?:fill|stroke)="#', text), "a colour that is the same on both"


def test_every_picture_is_shown_somewhere() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert {name for name in PICTURES if f"pictures/{name})" not in pages} == set()
    assert {path.name for path in FOLDER.glob("*.svg")} == PICTURES.keys()


def test_the_readme_says_of_the_modelled_fleet_what_its_table_says() -> None:
    told = " ".join((ROOT / "README.md").read_text().split())
    table = (ROOT / "benchmarks" / "results" / "fleet.md").read_text().partition("\n## ")[0]
    rows = [line.replace("*", "").split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    worse = [row for row in rows if max(float(row[4]), float(row[7])) > 1.03]
    count = ("none", "one", "two", "three", "four", "five")[len(worse)]
    assert f"of its {len(rows)} workloads, ours is worse than the best other one by more than 3 % in {count}" in told
