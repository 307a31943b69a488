"""Merging `spec.template` into a rendered pod template, as `kubectl patch` would: strategically.

Maps are merged, lists of named things by their names; a null takes away. Laws that the tests hold: merging nothing
changes nothing, and merging twice is merging once.
"""

from typing import Any, Final

_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
    "hostAliases": "ip",
}
"""By which field the items of a list are told apart. Lists that are not named here are replaced."""
_WHOLE: Final = {"volumes", "env"}
"""Lists whose items are one of several kinds: merging `value` with `valueFrom` would give what is neither."""
_APPENDED: Final = {"tolerations"}


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """`base` with `patch` over it; neither is changed. `field`: where both stand in what holds them."""
    match base, patch:
        case dict(), dict():
            merged = {key: value for key, value in base.items() if patch.get(key, value) is not None}
            for key, value in patch.items():
                if value is not None:
                    merged[key] = merge(merged.get(key), value, key)
            return merged
        case _, dict():
            return merge({}, patch)
        case list(), list() if field in _APPENDED:
            return base + [item for i, item in enumerate(patch) if item not in base and item not in patch[:i]]
        case ((list() | None), list()) if field in _KEYS:
            return _merge_named(base or [], patch, field)
    return patch


def _merge_named(base: list[Any], patch: list[Any], field: str) -> list[Any]:
    key = _KEYS[field]
    merged = {item.get(key): item for item in base}
    for item in patch:
        merged[item.get(key)] = merge({} if field in _WHOLE else merged.get(item.get(key)), item)
    return list(merged.values())
