"""What the operator has seen of the cluster: the last state of every object that watches, lists and own writes told.

Reconciling a ModelDeployment reads from here and not from the API server, so a hundred of them that are at rest cost it
nothing.

Words come late and in any order: an answer to our own write after the watch's word of the end, a list that was made
before it. Of each name the newest word counts, be it of a state or of an end, and whichever object had the name then.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from headwater.kubernetes import LABEL_DEPLOYMENT
from headwater_operator.cluster.kinds import (
    MODEL_DEPLOYMENT,
    Key,
    Kind,
    Object,
    kind_of,
    labels_of,
    name_of,
    namespace_of,
)
from headwater_operator.watch.names import Names
from headwater_operator.watch.specs import Specs

_Place = tuple[str, str, str]

_ENDS: Final = 10_000
"""So many ends are remembered: far more than come within the seconds that a word may be late."""


class Store:
    """Objects must not be changed by whoever gets them."""

    def __init__(self) -> None:
        self._objects: dict[_Place, Object] = {}
        self._by_kind: defaultdict[str, dict[_Place, Object]] = defaultdict(dict)
        self._by_mark: defaultdict[Key | str, set[_Place]] = defaultdict(set)
        """By the ModelDeployment that its label names, and by the UIDs of its owners."""
        self.names = Names()
        self.specs = Specs()
        self._ends: dict[_Place, int] = {}
        """Of what is gone: the version of that word. The oldest first."""

    def put(self, manifest: Object) -> bool:
        """Take in a state, unless a newer word is known. Says whether it was news."""
        place = _place(manifest)
        if _version(manifest) <= self._newest(place):
            return False
        self._drop(place)
        self._ends.pop(place, None)
        self._objects[place] = self._by_kind[place[0]][place] = manifest
        for mark in _marks(manifest):
            self._by_mark[mark].add(place)
        if kind_of(manifest) is MODEL_DEPLOYMENT:
            self.names.put(manifest)
            self.specs.put(manifest)
        return True

    def remove(self, manifest: Object) -> bool:
        """Take in that an object is gone, unless a newer word is known. Says whether it was news."""
        return self._end(_place(manifest), _version(manifest))

    def replace(self, kind: Kind, namespace: str | None, manifests: Iterable[Object], version: int) -> list[Object]:
        """Make this the whole content of a kind, in one namespace or all. Returns what changed or went.

        `version`: of the cluster when it was listed. What was told of later is not touched.
        """
        listed = {_place(manifest): manifest for manifest in manifests}
        known = [place for place in self._by_kind[kind.name] if namespace in (None, place[1])]
        missing = [self._objects[place] for place in known if place not in listed]
        gone = [manifest for manifest in missing if self._end(_place(manifest), version)]
        return gone + [manifest for manifest in listed.values() if self.put(manifest)]

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return self._objects.get((kind.name, namespace, name))

    def of(self, key: Key, kind: Kind) -> list[Object]:
        """All objects of a kind that carry the ModelDeployment's label, by name."""
        return self._marked(key, kind)

    def owned(self, uid: str, kind: Kind) -> list[Object]:
        """All objects of a kind that say that this is their owner, by name."""
        return self._marked(uid, kind)

    def all(self, kind: Kind) -> Iterator[Object]:
        return iter(list(self._by_kind[kind.name].values()))

    def _marked(self, mark: Key | str, kind: Kind) -> list[Object]:
        places = sorted(place for place in self._by_mark.get(mark, ()) if place[0] == kind.name)
        return [self._objects[place] for place in places]

    def _newest(self, place: _Place) -> int:
        """The version of the newest word."""
        known = self._objects.get(place)
        return self._ends.get(place, -1) if known is None else _version(known)

    def _end(self, place: _Place, version: int) -> bool:
        if version < self._newest(place):
            return False
        self._ends.pop(place, None)
        self._ends[place] = version
        if len(self._ends) > _ENDS:
            del self._ends[next(iter(self._ends))]
        gone = self._drop(place)
        if gone is not None and kind_of(gone) is MODEL_DEPLOYMENT:
            key = Key(namespace_of(gone), name_of(gone))
            self.names.remove(key)
            self.specs.remove(key)
        return gone is not None

    def _drop(self, place: _Place) -> Object | None:
        """Returns what was there. The two indexes by spec are not told: to them, another state of it is no end."""
        manifest = self._objects.pop(place, None)
        if manifest is None:
            return None
        del self._by_kind[place[0]][place]
        for mark in _marks(manifest):
            self._by_mark[mark].discard(place)
            if not self._by_mark[mark]:
                del self._by_mark[mark]
        return manifest


def _place(manifest: Object) -> _Place:
    return kind_of(manifest).name, namespace_of(manifest), name_of(manifest)


def _marks(manifest: Object) -> set[Key | str]:
    marks: set[Key | str] = {owner["uid"] for owner in manifest["metadata"].get("ownerReferences") or []}
    if (name := labels_of(manifest).get(LABEL_DEPLOYMENT)) is not None:
        marks.add(Key(namespace_of(manifest), name))
    return marks


def _version(manifest: Object) -> int:
    """Opaque by the letter of the API, but every server counts upwards, and Kubernetes 1.35 promises it."""
    return int(manifest["metadata"].get("resourceVersion") or 0)
