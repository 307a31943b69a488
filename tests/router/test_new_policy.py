"""A policy that is added in one place and forgotten in another fails here, by the name of the place."""

import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from headwater.resource import RoutingPolicy
from headwater_router import picker
from headwater_router.config import RouterSettings

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "router.md").read_text().partition("\n### A new policy\n")[2].partition("\n#")[0]


def files() -> set[str]:
    """Modules with a `make` of their own."""
    names = [module.name for module in pkgutil.iter_modules(picker.__path__)]
    loaded = {name: import_module(f"{picker.__name__}.{name}") for name in names}
    made = {name: getattr(module, "make", None) for name, module in loaded.items()}
    return {name for name, make in made.items() if make is not None and make.__module__ == loaded[name].__name__}


def table() -> set[str]:
    policies = (ROOT / "docs" / "router.md").read_text().partition("\n## Policies\n")[2]
    return set(re.findall(r"^\| `(\w+)` \| \[picker/\1\.py\]", policies, re.MULTILINE))


def row(page: str, field: str) -> set[str]:
    line = next(line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith(f"| `{field}`"))
    cell = next(cell for cell in line.split(" | ") if "`round_robin`" in cell)
    return set(re.findall(r"`(\w+)`", cell))


PLACES = {
    "headwater/resource.py": set(get_args(RoutingPolicy)),
    "router/headwater_router/picker/": files(),
    "docs/router.md": table(),
    "docs/resource.md": row("resource.md", "spec.routing.policy"),
    "docs/configuration.md": row("configuration.md", "--policy"),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_policy_is_in_every_place(place: str) -> None:
    assert PLACES[place] == set(picker.POLICIES)


def test_the_settings_know_the_policies_of_the_resource() -> None:
    assert get_args(RouterSettings.model_fields["policy"].annotation) == get_args(RoutingPolicy)


def test_the_guide_to_a_new_policy_names_every_place() -> None:
    """But the page that it stands on."""
    elsewhere = {place.removeprefix("docs/") for place in PLACES} - {"router.md"}
    assert [place for place in elsewhere if place not in GUIDE] == []
    assert all(command in GUIDE for command in ("python -m headwater.crd", "python -m charts.schema"))


ADDED = """
import random, sys
from types import ModuleType
from typing import Literal, get_args

import headwater.resource as resource

class Fastest: ...

resource.RoutingPolicy = Literal["fastest", "prefix"]
module = ModuleType("headwater_router.picker.fastest")
module.make = lambda index, rng, objective: Fastest()
sys.modules[module.__name__] = module

from headwater_router.config import RouterSettings
from headwater_router.index.prefixes import PrefixIndex
from headwater_router.picker.policies import Policies

policies = Policies(RouterSettings(policy="fastest").policy, PrefixIndex())
assert isinstance(policies.of(None), Fastest)
assert isinstance(policies.of("fastest"), Fastest)
assert not isinstance(policies.of("prefix"), Fastest)
"""


def test_a_file_and_a_name_are_all_that_a_router_needs_of_a_policy() -> None:
    done = subprocess.run([sys.executable, "-c", ADDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
