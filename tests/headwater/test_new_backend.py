"""A backend that is added in one place and forgotten in another fails here, by the name of the place."""

import re
from pathlib import Path
from typing import get_args

import pytest

from headwater import backends
from headwater.pick.capabilities import CAPABILITIES, BackendName
from headwater.resource import BackendType
from tests.operator import rendering, test_render_golden

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "backends.md").read_text()


def sections() -> set[str]:
    return set(re.findall(r"^## ([a-z-]+)$", DOCS, re.MULTILINE))


def columns() -> set[str]:
    table = DOCS.partition("## What each can do")[2]
    header = next(line for line in table.splitlines() if line.startswith("|"))
    return {cell.strip(" `") for cell in header.strip("|").split("|")} - {""}


PLACES = {
    "headwater/resource.py": set(get_args(BackendType)) - {"auto"},
    "headwater/pick/capabilities.py": set(get_args(BackendName)) & {row.backend for row in CAPABILITIES},
    "tests/operator/rendering.py": set(rendering.BACKENDS),
    "tests/operator/test_render_golden.py": set(test_render_golden.DEFINED),
    "docs/backends.md, a section": sections(),
    "docs/backends.md, the table": columns(),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_backend_is_in_every_place(place: str) -> None:
    assert PLACES[place] == set(backends.names())


def test_the_guide_to_a_new_backend_names_every_place() -> None:
    guide = DOCS.partition("## A new backend")[2]
    assert "headwater/backends/" in guide
    missing = (
        {place.partition(",")[0] for place in PLACES} - {"docs/backends.md"} - set(re.findall(r"[\w/]+\.py", guide))
    )
    assert not missing


def test_the_operator_asks_no_backend_for_its_name() -> None:
    """What differs is a field of `Backend`: a comparison would be one more place. Our own has an image of its own."""
    asking = re.compile(rf'(==|!=|case) "({"|".join(set(backends.names()) - {"headwater"})})"')
    files = list((ROOT / "operator" / "headwater_operator").rglob("*.py"))
    assert files and not [path for path in files if asking.search(path.read_text())]
