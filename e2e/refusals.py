"""The refusals that docs/resource.md promises, as resources to try."""

import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PAGE = Path(__file__).parents[1] / "docs" / "resource.md"

LEAST: dict[str, Any] = {
    "apiVersion": "headwater.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "smollm2"},
    "spec": {"model": {"source": "hf://owner/model"}},
}


@dataclass(frozen=True)
class Refusal:
    wrong: str
    resource: dict[str, Any]
    field: str
    message: str


def refusals() -> list[Refusal]:
    """A row of the table each: what is wrong, an example, the field to blame, the message."""
    table = PAGE.read_text().partition("\n## Refusals\n")[2]
    rows = re.findall(r"^\| ([^|`]+) \| `([^|]+)` \| `([^|]+)` \| ([^|]+) \|$", table, re.MULTILINE)
    return [
        Refusal(wrong, merged(LEAST, yaml.safe_load(example)), field, message)
        for wrong, example, field, message in rows
    ]


def examples() -> list[dict[str, Any]]:
    """The page's examples, made whole where they are parts."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [merged(LEAST, yaml.safe_load(block)) for block in blocks]


def merged(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    result = deepcopy(base)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result
