"""What the API server cannot refuse is told as docs/resource.md says, by its reason and in these words."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.operator.world import WEIGHTLESS, World

PAGE = Path(__file__).parents[2] / "docs" / "resource.md"


class Told(NamedTuple):
    wrong: str
    spec: dict[str, Any]
    reason: str
    message: str


def rows() -> list[Told]:
    table = PAGE.read_text().partition("\n## Told later\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| ([^|`]+) \| `([^|]+)` \| `(\w+)` \| ([^|]+) \|$", table, re.MULTILINE)
    return [Told(wrong, yaml.safe_load(example)["spec"], reason, message) for wrong, example, reason, message in found]


def test_there_are_enough_of_them() -> None:
    assert len(rows()) >= 30


@pytest.mark.parametrize("told", rows(), ids=lambda told: told.wrong)
async def test_a_bad_resource_is_told_of_as_the_docs_promise(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    world = World(monkeypatch)
    spec = dict(told.spec)
    source = spec.pop("model", {"source": WEIGHTLESS})["source"]
    world.create(source=source, **spec)
    await world.settle()
    assert world.condition("Degraded") == ("True", told.reason)
    assert told.message in world.message("Degraded")
