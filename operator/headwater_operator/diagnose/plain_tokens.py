"""Secrets that somebody wrote into a resource as they are, where all who may view it can read them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from headwater_operator.cluster.kinds import Object

_NAME: Final = re.compile(r"(.*_)?(API_?KEY|ACCESS_KEY|PRIVATE_KEY|SECRET|TOKEN|PASSWORD|PASSWD|SECRET_KEY|KEY)")
_VALUE: Final = re.compile(r"(hf_|sk-|ghp_|glpat-|AKIA)[A-Za-z0-9_-]{12,}")
"""Beginnings by which tokens are known, whatever the variable is called."""


def plain_tokens(resource: Object) -> list[str]:
    """Where they stand: paths of fields, without the values. A spec of the wrong shape has none."""
    spec = resource.get("spec") or {}
    try:
        found = dict(_variables(spec))
    except (AttributeError, KeyError, TypeError):
        return []
    return [path for path, (name, value) in found.items() if value and (_is_name(name) or _VALUE.match(value))]


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name.upper()) is not None


def _variables(spec: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, value in ((spec.get("backend") or {}).get("env") or {}).items():
        yield f"spec.backend.env.{name}", (name, str(value))
    pod = (spec.get("template") or {}).get("spec") or {}
    for container in pod.get("containers") or []:
        for entry in container.get("env") or []:
            yield f"spec.template, variable {entry['name']}", (entry["name"], str(entry.get("value") or ""))
