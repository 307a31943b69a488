"""Fields of an object one by one, as server-side apply owns them: what is a leaf, and how lists are told apart."""

from typing import Any, Final, TypeVar, cast

from headwater_operator.cluster.kinds import Object

T = TypeVar("T")
Path = tuple[Any, ...]
"""Names of fields; an item of a list that has keys is the pair of its key's name and value."""
Leaves = dict[Path, Any]

_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ownerReferences": "uid",
    "conditions": "type",
    "topologySpreadConstraints": "topologyKey",
}
_PORT_KEYS: Final = ("containerPort", "port")
_SERVERS: Final = {
    ("metadata", name)
    for name in ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
}


def copied(value: T) -> T:
    """What JSON can hold, anew."""
    match value:
        case dict():
            return cast("T", {name: copied(each) for name, each in value.items()})
        case list():
            return cast("T", [copied(each) for each in value])
    return value


def leaves(manifest: Object, *, status: bool = False, everything: bool = False) -> Leaves:
    """What a writer owns of it: its status alone, or all but that; `everything`: both."""
    found: Leaves = {}
    for name, value in manifest.items():
        if name in ("apiVersion", "kind") or (not everything and (name == "status") != status):
            continue
        _collect(value, (name,), found)
    return {path: value for path, value in found.items() if path[:2] not in _SERVERS}


def _collect(value: Any, path: Path, found: Leaves) -> None:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            _collect(each, (*path, name), found)
    elif (key := _key(path[-1], value)) is not None:
        for item in value:
            place = (*path, (key, item[key]))
            found[place] = ...  # that it is there
            for name, each in item.items():
                _collect(each, (*place, name), found)
    else:
        found[path] = value


def _key(field: Any, value: Any) -> str | None:
    """By what the items of a list are told apart; None for what is no such list."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return None
    if field == "ports":
        return next((key for key in _PORT_KEYS if key in value[0]), None)
    key = _KEYS.get(field)
    return key if key is not None and all(key in item for item in value) else None


def get(manifest: Object, path: Path) -> Any:
    """None where it is not there."""
    here: Any = manifest
    for step in path:
        if isinstance(step, tuple):
            here = next((item for item in here or [] if item.get(step[0]) == step[1]), None)
        else:
            here = here.get(step) if isinstance(here, dict) else None
        if here is None:
            return None
    return ... if isinstance(path[-1], tuple) else here


def put(manifest: Object, path: Path, value: Any) -> None:
    here: Any = manifest
    for step, following in zip(path, [*path[1:], None], strict=True):
        if isinstance(step, tuple):
            item = next((each for each in here if each.get(step[0]) == step[1]), None)
            if item is None:
                item = {step[0]: step[1]}
                here.append(item)
            here = item
        elif following is None:
            here[step] = copied(value)
        else:
            wanted: type[Any] = list if isinstance(following, tuple) else dict
            if not isinstance(here.get(step), wanted):
                here[step] = wanted()
            here = here[step]


def drop(manifest: Object, path: Path) -> None:
    """With what is left empty by it. The key of an item goes only with the item."""
    if len(path) > 1 and isinstance(path[-2], tuple) and path[-2][0] == path[-1]:
        return
    holders: list[tuple[Any, Any]] = []
    here: Any = manifest
    for step in path:
        holders.append((here, step))
        if isinstance(step, tuple):
            here = next((item for item in here if item.get(step[0]) == step[1]), None)
        else:
            here = here.get(step)
        if here is None:
            return
    for holder, step in reversed(holders):
        if isinstance(step, tuple):
            holder.remove(next(item for item in holder if item.get(step[0]) == step[1]))
        else:
            del holder[step]
        if holder:
            break
