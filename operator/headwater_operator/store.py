"""What the operator has seen of the cluster: the last state of every object that watches, lists and own writes told.

Looking at a ModelDeployment reads from here and not from the API server, so a hundred of them that are at rest cost it
nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from headwater.kubernetes import LABEL_DEPLOYMENT
from headwater_operator.kinds import Kind, Object, kind_of, labels_of, name_of, namespace_of
from headwater_operator.queue import Key

_Place = tuple[str, str, str]


class Store:
    """Objects must not be changed by whoever gets them."""

    def __init__(self) -> None:
        self._objects: dict[_Place, Object] = {}
        self._by_deployment: defaultdict[Key, set[_Place]] = defaultdict(set)

    def put(self, manifest: Object) -> bool:
        """Take in a state, unless a newer one is known. Says whether it was news."""
        place = _place(manifest)
        old = self._objects.get(place)
        if old is not None and _same_life(old, manifest) and _version(manifest) <= _version(old):
            return False
        if old is not None:
            self._unlist(place, old)
        self._objects[place] = manifest
        if (name := labels_of(manifest).get(LABEL_DEPLOYMENT)) is not None:
            self._by_deployment[Key(namespace_of(manifest), name)].add(place)
        return True

    def remove(self, manifest: Object) -> bool:
        """Says whether that very object was known."""
        place = _place(manifest)
        old = self._objects.get(place)
        if old is None or not _same_life(old, manifest):
            return False
        self._unlist(place, old)
        del self._objects[place]
        return True

    def replace(self, kind: Kind, namespace: str | None, manifests: Iterable[Object], version: int) -> list[Object]:
        """Make this the whole content of a kind, in one namespace or all. Returns what changed or went.

        `version`: of the cluster when it was listed. What was told of later is not touched.
        """
        listed = {_place(manifest): manifest for manifest in manifests}
        known = [
            place for place in self._objects if place[0] == kind.name and (namespace is None or place[1] == namespace)
        ]
        missing = [self._objects[place] for place in known if place not in listed]
        gone = [manifest for manifest in missing if _version(manifest) <= version]
        for manifest in gone:
            self.remove(manifest)
        return gone + [manifest for manifest in listed.values() if self.put(manifest)]

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return self._objects.get((kind.name, namespace, name))

    def of(self, key: Key, kind: Kind) -> list[Object]:
        """All objects of a kind that carry the ModelDeployment's label, by name."""
        places = sorted(place for place in self._by_deployment.get(key, ()) if place[0] == kind.name)
        return [self._objects[place] for place in places]

    def all(self, kind: Kind) -> Iterator[Object]:
        return iter([manifest for place, manifest in self._objects.items() if place[0] == kind.name])

    def _unlist(self, place: _Place, manifest: Object) -> None:
        if (name := labels_of(manifest).get(LABEL_DEPLOYMENT)) is not None:
            key = Key(namespace_of(manifest), name)
            self._by_deployment[key].discard(place)
            if not self._by_deployment[key]:
                del self._by_deployment[key]


def _place(manifest: Object) -> _Place:
    return kind_of(manifest).name, namespace_of(manifest), name_of(manifest)


def _same_life(one: Object, other: Object) -> bool:
    return bool(one["metadata"].get("uid") == other["metadata"].get("uid"))


def _version(manifest: Object) -> int:
    """Opaque by the letter of the API, but every server counts upwards, and Kubernetes 1.35 promises it."""
    return int(manifest["metadata"].get("resourceVersion") or 0)
