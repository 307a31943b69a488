"""An API server in memory, with what of it the operator depends on: ownership of fields, versions, refusals.

Every call is counted. Nothing happens by itself: garbage is collected and watches tell their news when a test says so.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from headwater.kubernetes import FIELD_MANAGER
from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.kinds import CLAIM, POD, Kind, Object, labels_of, name_of, namespace_of, uid_of
from tests.operator.field_ownership import Leaves, copied, drop, get, leaves, put

START: Final = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
_LABEL: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_HOST: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_FIXED: Final[dict[str, tuple[str, ...]]] = {
    "Deployment": ("selector",),
    "StatefulSet": ("selector", "serviceName", "podManagementPolicy"),
    "Job": ("template", "selector"),
    "PersistentVolumeClaim": ("accessModes", "storageClassName"),
}
"""Fields of a spec that nobody can change."""
_LONGEST: Final = {"Service": 63, "Job": 63, "StatefulSet": 63 - len("-0123456789")}
"""Characters of a name."""


class Call(NamedTuple):
    verb: str
    kind: str
    name: str


Writer = tuple[str, str, str]
"""Field manager, operation and subresource."""


Calls = list[Call]
Objects = list[Object]


class FakeCluster(Cluster):
    def __init__(self) -> None:
        self.now: Callable[[], datetime] = lambda: START
        self.objects: dict[tuple[str, str, str], Object] = {}
        """By kind, namespace and name. Read them; to write, be a user."""
        self.calls: list[Call] = []
        """Of the operator."""
        self.news: list[tuple[bool, Object]] = []
        """What watches have not told yet: whether it is gone, and its last state."""
        self.refuses: Callable[[Call], ApiError | None] = lambda call: None
        self._owners: dict[str, dict[Writer, Leaves]] = {}
        self._counter = itertools.count(1)
        self._versions = itertools.count(100)
        self.version = 100

    async def __aenter__(self) -> "FakeCluster":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    # What the operator calls

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        self._count("get", kind.name, name)
        return copied(self.objects.get((kind.name, namespace, name)))

    async def list(
        self, kind: Kind, namespace: str | None, selector: str = "", fields: str = ""
    ) -> tuple[Objects, int]:
        self._count("list", kind.name, "")
        wanted = dict(each.split("=") for each in selector.split(",") if each)
        found = [
            copied(each)
            for place, each in self.objects.items()
            if place[0] == kind.name
            and namespace in (None, place[1])
            and wanted.items() <= labels_of(each).items()
            and _has(each, fields)
        ]
        return found, self.version

    async def apply(self, manifest: Object, *, manager: str = FIELD_MANAGER, subresource: str | None = None) -> Object:
        self._count("apply", manifest["kind"], name_of(manifest), subresource)
        return self._apply(manifest, (manager, "Apply", subresource or ""))

    async def try_out(self, manifest: Object) -> None:
        self._count("try", manifest["kind"], name_of(manifest))
        _validate(manifest, None)

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Object, subresource: str | None = None
    ) -> Object:
        self._count("patch", kind.name, name, subresource)
        return self.merge(kind.name, name, patch, namespace=namespace, manager=FIELD_MANAGER)

    async def create(self, manifest: Object) -> Object:
        name = manifest["metadata"].get("name", manifest["metadata"].get("generateName", ""))
        self._count("create", manifest["kind"], name)
        return self.add(manifest, manager=FIELD_MANAGER)

    async def replace(self, manifest: Object) -> Object:
        self._count("replace", manifest["kind"], name_of(manifest))
        live = self._existing(_place(manifest))
        if manifest["metadata"].get("resourceVersion") != live["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        return self._update(manifest, live, FIELD_MANAGER)

    async def delete(self, manifest: Object, *, grace: int | None = None) -> None:
        self._count("delete", manifest["kind"], name_of(manifest))
        live = self.objects.get(_place(manifest))
        if live is not None and uid_of(live) == manifest["metadata"]["uid"]:
            self.end(live, grace)

    # What others do

    def add(self, manifest: Object, manager: str = "kubectl") -> Object:
        manifest = copied(manifest)
        if "generateName" in manifest["metadata"]:
            manifest["metadata"]["name"] = f"{manifest['metadata'].pop('generateName')}{next(self._counter)}"
        if _place(manifest) in self.objects:
            raise ApiError(409, "AlreadyExists", f"{name_of(manifest)} already exists")
        return self._insert(manifest, (manager, "Update", ""))

    def merge(
        self, kind: str, name: str, patch: Object, *, namespace: str = "default", manager: str = "kubectl"
    ) -> Object:
        """A merge patch. The status may be in it, for controllers."""
        live = self._existing((kind, namespace, name))
        return self._update(_merged(live, patch), live, manager)

    def write_over(self, manifest: Object, manager: str = "kubectl") -> Object:
        """`kubectl replace`: what is not in the manifest is gone."""
        live = self._existing(_place(manifest))
        kept = {"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"}
        given = copied(manifest)
        given["metadata"] |= {name: value for name, value in live["metadata"].items() if name in kept}
        if "status" in live:
            given["status"] = live["status"]
        return self._update(given, live, manager)

    def end(self, live: Object, grace: int | None = None) -> None:
        """Delete: a pod goes when its kubelet says so, a mounted volume when nobody mounts it any more."""
        seconds = grace if grace is not None else (live.get("spec") or {}).get("terminationGracePeriodSeconds", 30)
        if live["kind"] == POD.name and seconds:
            if "deletionTimestamp" not in live["metadata"]:
                end = self.now() + timedelta(seconds=seconds)
                self.merge(POD.name, name_of(live), {"metadata": {"deletionTimestamp": written(end)}}, manager="api")
        elif live["kind"] == CLAIM.name and self._mounted(name_of(live)):
            gone = {"metadata": {"deletionTimestamp": written(self.now())}}
            self.merge(CLAIM.name, name_of(live), gone, manager="api")
        else:
            self.remove(live)

    def remove(self, live: Object) -> None:
        """At once and altogether."""
        gone = self.objects.pop(_place(live))
        self._owners.pop(uid_of(live), None)
        self.version = next(self._versions)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self.news.append((True, copied(gone)))

    def collect_garbage(self) -> None:
        """Until nothing is left whose owners are all gone."""
        while True:
            there = {uid_of(each) for each in self.objects.values()}
            garbage = [
                each
                for each in self.objects.values()
                if (owners := each["metadata"].get("ownerReferences"))
                and not any(owner["uid"] in there for owner in owners)
                and "deletionTimestamp" not in each["metadata"]
            ]
            for each in garbage:
                self.end(each)
            if not garbage:
                break

    def all(self, kind: str) -> Objects:
        return [each for place, each in sorted(self.objects.items()) if place[0] == kind]

    def one(self, kind: str, name: str) -> Object | None:
        return self.objects.get((kind, "default", name))

    def writes(self) -> Calls:
        """Calls of the operator that were meant to change something."""
        return [call for call in self.calls if call.verb.partition(" ")[0] not in ("get", "list", "try")]

    # Within

    def _count(self, verb: str, kind: str, name: str, subresource: str | None = None) -> None:
        call = Call(f"{verb} {subresource}" if subresource else verb, kind, name)
        self.calls.append(call)
        if (error := self.refuses(call)) is not None:
            raise error

    def _apply(self, manifest: Object, writer: Writer) -> Object:
        live = self.objects.get(_place(manifest))
        if manifest["metadata"].get("uid", live and uid_of(live)) != (live and uid_of(live)):
            raise ApiError(409, "Conflict", "uid mismatch: it is not the object of that UID")
        if live is None:
            if writer[2]:
                raise ApiError(404, "NotFound", f"{name_of(manifest)} not found")
            return self._insert(copied(manifest), writer)
        changed, owners = copied(live), self._owners_of(live)
        applied = leaves(manifest, status=writer[2] == "status")
        for path, value in applied.items():
            if get(changed, path) != value:
                for other in owners.values():
                    other.pop(path, None)
                put(changed, path, value)
        for path in sorted(owners.pop(writer, {}).keys() - applied.keys(), key=len):
            # What was an empty list may have items now.
            if not any(_touches(other, path) for other in (applied, *owners.values())):
                drop(changed, path)
        owners[writer] = applied
        return self._commit(changed, live, owners)

    def _insert(self, manifest: Object, writer: Writer) -> Object:
        status_is_apart = manifest["kind"] == "ModelDeployment" and manifest.pop("status", None) is not None
        assert not status_is_apart, "the status has its own door"
        manifest["metadata"] |= {
            "uid": f"uid-{next(self._counter)}",
            "creationTimestamp": written(self.now()),
            "generation": 1,
        }
        return self._commit(manifest, None, {writer: leaves(manifest)})

    def _update(self, manifest: Object, live: Object, manager: str) -> Object:
        owners = self._owners_of(live)
        before, after = leaves(live, everything=True), leaves(manifest, everything=True)
        changed = {path: value for path, value in after.items() if before.get(path, ...) != value}
        for other in owners.values():
            for path in [path for path in other if path in changed or path not in after]:
                del other[path]
        owners.setdefault((manager, "Update", ""), {}).update(changed)
        return self._commit(copied(manifest), live, owners)

    def _commit(self, manifest: Object, live: Object | None, owners: dict[Writer, Leaves]) -> Object:
        _default(manifest)
        _validate(manifest, live)
        owners = {
            writer: {path: value for path, value in paths.items() if get(manifest, path) is not None}
            for writer, paths in owners.items()
        }
        owners = {writer: paths for writer, paths in owners.items() if paths}
        metadata = manifest["metadata"]
        metadata["managedFields"] = [
            {"manager": manager, "operation": operation, "subresource": sub, "fieldsV1": sorted(map(str, paths))}
            for (manager, operation, sub), paths in owners.items()
        ]
        if manifest == live:
            return copied(live)
        if live is not None and manifest.get("spec") != live.get("spec"):
            metadata["generation"] += 1
        self.version = next(self._versions)
        metadata["resourceVersion"] = str(self.version)
        self.objects[_place(manifest)] = manifest
        self._owners[uid_of(manifest)] = owners
        self.news.append((False, copied(manifest)))
        return copied(manifest)

    def _owners_of(self, live: Object) -> dict[Writer, Leaves]:
        """To be changed by a caller, who may yet be refused."""
        return {writer: dict(paths) for writer, paths in self._owners[uid_of(live)].items()}

    def _existing(self, place: tuple[str, str, str]) -> Object:
        if place not in self.objects:
            raise ApiError(404, "NotFound", f'{place[0]} "{place[2]}" not found')
        return self.objects[place]

    def _mounted(self, claim: str) -> bool:
        volumes = [volume for pod in self.all(POD.name) for volume in pod["spec"].get("volumes", [])]
        return any((each.get("persistentVolumeClaim") or {}).get("claimName") == claim for each in volumes)


def written(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _place(manifest: Object) -> tuple[str, str, str]:
    return manifest["kind"], namespace_of(manifest), name_of(manifest)


def _has(manifest: Object, fields: str) -> bool:
    for each in filter(None, fields.split(",")):
        path, _, value = each.partition("=")
        if get(manifest, tuple(path.split("."))) != value:
            return False
    return True


def _touches(owned: Leaves, path: tuple[Any, ...]) -> bool:
    return any(each[: len(path)] == path for each in owned)


def _merged(base: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copied(patch)
    merged = copied(base) if isinstance(base, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


# What the API server makes of what it is given


def _default(manifest: Object) -> None:
    spec = manifest.get("spec")
    match manifest["kind"]:
        case "Deployment" if spec is not None:
            spec.setdefault("replicas", 1)
            for field in ("paused", "minReadySeconds"):
                if not spec.get(field, True):
                    del spec[field]  # what Go leaves out when it is zero
        case "StatefulSet" if spec is not None:
            spec.setdefault("replicas", 1)
        case "Job" if spec is not None:
            spec.setdefault("parallelism", 1)
        case "Service" if spec is not None:
            spec.setdefault("type", "ClusterIP")
            spec.setdefault("clusterIP", "10.0.0.1")
        case "PersistentVolumeClaim" if spec is not None:
            spec.setdefault("storageClassName", "standard")
            manifest.setdefault("status", {"phase": "Pending"})
    for container in _containers(spec or {}) if manifest["kind"] != "ModelDeployment" else ():
        container.setdefault("imagePullPolicy", "IfNotPresent")
        for amounts in (container.get("resources") or {}).values():
            for name, amount in amounts.items():
                amounts[name] = str(amount)


def _containers(spec: Object) -> Iterator[Object]:
    pod = (spec.get("template") or {}).get("spec") or {}
    yield from pod.get("containers", [])


def _validate(manifest: Object, live: Object | None) -> None:
    kind, metadata, spec = manifest["kind"], manifest["metadata"], manifest.get("spec") or {}
    template = (spec.get("template") or {}).get("metadata") or {}
    for label, value in [*labels_of(manifest).items(), *(template.get("labels") or {}).items()]:
        if not _LABEL.fullmatch(value):
            raise ApiError(422, "Invalid", f"{kind}: label {label}: {value!r} is no label's value")
    if kind == "Service" and not _HOST.fullmatch(metadata["name"]):
        raise ApiError(422, "Invalid", f"Service: metadata.name: {metadata['name']!r} is no DNS label")
    if len(metadata["name"]) > _LONGEST.get(kind, 253):
        raise ApiError(422, "Invalid", f"{kind}: metadata.name: a label or a host name would be longer than 63")
    if kind in ("Deployment", "StatefulSet", "Job") and not (spec.get("template") or {}).get("spec"):
        raise ApiError(422, "Invalid", f"{kind}: spec.template: Required value")
    for field in _FIXED.get(kind, ()) if live is not None else ():
        if spec.get(field) != ((live or {}).get("spec") or {}).get(field):
            raise ApiError(422, "Invalid", f"{kind}: spec.{field}: field is immutable")
