"""What ModelDeployments ask for: each read once for each of its versions, and found by the weights that it uses.

To reconcile one takes its own spec, and those of the others with the same weights. To read a spec takes a fifth of a
millisecond, so nobody may read all of its neighbours: a thousand of them would hold up everybody else.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from pydantic import ValidationError

from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import Key, Object, name_of, namespace_of, uid_of
from headwater_operator.render.weights import FETCHED, volume_of


class Specs:
    """Kept by the store, of which it is an index."""

    def __init__(self) -> None:
        self._resources: dict[Key, Object] = {}
        self._read: dict[Key, ModelDeployment | ValidationError] = {}
        self._users: defaultdict[str, defaultdict[str, set[Key]]] = defaultdict(lambda: defaultdict(set))
        """By name of the volume that holds their weights, and by namespace."""
        self._sharing: dict[tuple[str, str], dict[str, ModelDeployment]] = {}
        """What was made of these since one of them changed."""

    def put(self, resource: Object) -> None:
        key = Key(namespace_of(resource), name_of(resource))
        self.remove(key)
        self._resources[key] = resource
        if (volume := _volume(resource)) is not None:
            self._users[volume][key.namespace].add(key)
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

    def users(self, namespace: str, volume: str) -> set[Key]:
        """Whose weights are in it, or are to be."""
        return set(self._users[volume][namespace]) if namespace in self._users.get(volume, ()) else set()

    def users_everywhere(self, volume: str) -> set[Key]:
        """Who asks for the same weights, in whatever namespace."""
        return {key for keys in self._users.get(volume, {}).values() for key in keys}

    def sharing(self, namespace: str, volume: str) -> Mapping[str, ModelDeployment]:
        """The same by UID, but for those that go, or make no sense."""
        place = namespace, volume
        if place not in self._sharing:
            self._sharing[place] = dict(self._valid(self.users(namespace, volume)))
        return self._sharing[place]

    def _valid(self, keys: Iterable[Key]) -> Iterator[tuple[str, ModelDeployment]]:
        for key in keys:
            resource = self._resources[key]
            if "deletionTimestamp" not in resource["metadata"]:
                with contextlib.suppress(ValidationError):
                    yield uid_of(resource), self.read(key)


def _read(resource: Object) -> ModelDeployment:
    return ModelDeployment.model_validate({name: resource[name] for name in ("apiVersion", "kind", "metadata", "spec")})


def _volume(resource: Object) -> str | None:
    """From the fields as they are, without reading all of the spec."""
    try:
        spec = resource["spec"]
        source, revision = spec["model"]["source"], spec["model"].get("revision") or "main"
        cached = (spec.get("weights") or {}).get("cached") is not False
        return volume_of(source, revision) if cached and source.startswith(FETCHED) else None
    except (KeyError, TypeError, AttributeError):
        return None
