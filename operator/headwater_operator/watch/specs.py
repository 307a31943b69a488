"""What ModelDeployments ask for: each read once for each of its versions, and found by the weights that it uses.

To reconcile one takes its own spec, and those of the others with the same weights. To read a spec takes a fifth of a
millisecond, so nobody may read all of its neighbours: a thousand of them would hold up everybody else. Nor may each of
a thousand go through all who share its weights: what follows from these is worked out once, until one of them changes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import Key, Object, name_of, namespace_of, uid_of
from headwater_operator.render.weights import FETCHED, volume_of

T = TypeVar("T")

_BESIDE: Final = frozenset({"resourceVersion", "managedFields", "generation"})
"""Of the metadata, what changes with each status that is written, and says nothing of what is asked for."""


class Sharing:
    """The ModelDeployments that share a volume of weights, while none comes, goes or asks for something else."""

    def __init__(self, users: Mapping[str, ModelDeployment]) -> None:
        self.users = users
        """By UID, without those that are about to go, or make no sense."""
        self._made: dict[str, tuple[tuple[Any, ...], Any]] = {}

    @cached_property
    def spokesman(self) -> ModelDeployment | None:
        """Whose Secret, variables and placement the Job has: the same for all, or they would take turns."""
        return min(self.users.values(), key=lambda user: (user.spec.model.secret_ref is None, user.name), default=None)

    @cached_property
    def keeps(self) -> bool:
        """Whether one of them wants the volume kept."""
        return any(user.spec.weights.keep for user in self.users.values())

    def once(self, what: str, of: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What is made of all of them, and of `of`: anew only where that is another than the last time."""
        known = self._made.get(what)
        if known is None or known[0] != of:
            known = self._made[what] = of, make()
        return known[1]


class Specs:
    """Kept by the store, of which it is an index."""

    def __init__(self) -> None:
        self._resources: dict[Key, Object] = {}
        self._read: dict[Key, ModelDeployment | ValidationError] = {}
        self._users: defaultdict[str, defaultdict[str, set[Key]]] = defaultdict(lambda: defaultdict(set))
        """By name of the volume that holds their weights, and by namespace."""
        self._volumes: defaultdict[Key, set[str]] = defaultdict(set)
        """All that one has asked for, until nobody need know it any more."""
        self._sharing: dict[tuple[str, str], Sharing] = {}
        """What was made of these since one of them changed."""

    def put(self, resource: Object) -> None:
        key = Key(namespace_of(resource), name_of(resource))
        known = self._resources.get(key)
        if known is not None and _asked(known) == _asked(resource):
            self._resources[key] = resource
            return
        self.remove(key)
        self._resources[key] = resource
        if (volume := _volume(resource)) is not None:
            self._users[volume][key.namespace].add(key)
            self._volumes[key].add(volume)
            self._sharing.pop((key.namespace, volume), None)

    def remove(self, key: Key) -> None:
        resource = self._resources.pop(key, None)
        self._read.pop(key, None)
        volume = _volume(resource) if resource is not None else None
        if volume is not None:
            self._users[volume][key.namespace].discard(key)
            self._sharing.pop((key.namespace, volume), None)
            if not self._users[volume][key.namespace]:
                del self._users[volume][key.namespace]
            if not self._users[volume]:
                del self._users[volume]

    def read(self, key: Key) -> ModelDeployment:
        """Of one that is there. Raises ValidationError: the API server's own checks are the same but for a few that CEL
        cannot say."""
        known = self._read.get(key)
        if known is None:
            try:
                known = _read(self._resources[key])
            except ValidationError as error:
                known = error
            self._read[key] = known
        if isinstance(known, ValidationError):
            raise known.with_traceback(None)
        return known

    def volumes(self, key: Key) -> set[str]:
        """In which the weights are that it asks for, or has asked for; also of one that is gone, until `forget`."""
        return set(self._volumes.get(key, ()))

    def forget(self, key: Key) -> None:
        """Which volumes one had that is gone: they have been looked after."""
        if key not in self._resources:
            self._volumes.pop(key, None)

    def users(self, namespace: str, volume: str) -> set[Key]:
        """Whose weights are in it, or are to be."""
        return set(self._users[volume][namespace]) if namespace in self._users.get(volume, ()) else set()

    def users_everywhere(self, volume: str) -> set[Key]:
        """Who asks for the same weights, in whatever namespace."""
        return {key for keys in self._users.get(volume, {}).values() for key in keys}

    def sharing(self, namespace: str, volume: str) -> Sharing:
        place = namespace, volume
        known = self._sharing.get(place)
        if known is None:
            known = self._sharing[place] = Sharing(dict(self._valid(self.users(namespace, volume))))
        return known

    def _valid(self, keys: Iterable[Key]) -> Iterator[tuple[str, ModelDeployment]]:
        for key in keys:
            resource = self._resources[key]
            if "deletionTimestamp" not in resource["metadata"]:
                try:
                    yield uid_of(resource), self.read(key)
                except ValidationError:
                    continue


def _read(resource: Object) -> ModelDeployment:
    return ModelDeployment.model_validate({name: resource[name] for name in ("apiVersion", "kind", "metadata", "spec")})


def _asked(resource: Object) -> tuple[Object, Any]:
    """What is read of it. Most of its versions differ in the status alone."""
    metadata = {name: value for name, value in resource["metadata"].items() if name not in _BESIDE}
    return metadata, resource.get("spec")


def _volume(resource: Object) -> str | None:
    """From the fields as they are, without reading all of the spec."""
    try:
        spec = resource["spec"]
        source, revision = spec["model"]["source"], spec["model"].get("revision") or "main"
        cached = (spec.get("weights") or {}).get("cached") is not False
        return volume_of(source, revision) if cached and source.startswith(FETCHED) else None
    except (KeyError, TypeError, AttributeError):
        return None
