"""What belongs to shared weights is worked out once, however many share them, and is never out of date."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_operator.cluster.kinds import Key, Object
from headwater_operator.config import OperatorSettings
from headwater_operator.reconcile import weights
from headwater_operator.reconcile.weights import Observed, WeightsPlan, plan
from headwater_operator.render.weights import volume_of
from headwater_operator.watch.specs import Specs
from tests.operator.weights_world import START
from tests.operator.world import World

SOURCE, OTHER = "hf://org/model", "hf://org/other"
MANY = 40


class Crowd:
    """So many ModelDeployments that share their weights, all at rest; and what is made of all of them, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = MANY, **spec: Any) -> None:
        self.world = World(monkeypatch)
        self.names = [f"m{number:03}" for number in range(count)]
        for name in self.names:
            self.world.create(name, source=SOURCE, backend={"type": "vllm"}, weights={"keep": False}, **spec)
        self.made: list[str] = []
        for each in ("render_claim", "render_job", "render_copy", "_owners"):
            monkeypatch.setattr(weights, each, self._counted(each, getattr(weights, each)))

    def _counted(self, name: str, made: Any) -> Any:
        def counted(*given: Any, **options: Any) -> Any:
            self.made.append(name)
            return made(*given, **options)

        return counted

    async def resync(self) -> None:
        await self.world.controller.load()
        for name in self.names:
            await self.world.reconcile(name)

    async def fill(self) -> None:
        await self.world.settle(*self.names)
        self.world.kube.finish(self.claim["metadata"]["name"])
        await self.world.settle(*self.names)

    @property
    def claim(self) -> Object:
        (found,) = self.world.cluster.all("PersistentVolumeClaim")
        return found

    @property
    def owners(self) -> list[str]:
        return [each["name"] for each in self.claim["metadata"].get("ownerReferences") or []]


async def test_a_resync_works_out_once_what_belongs_to_all_who_share(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(monkeypatch)
    await crowd.fill()
    crowd.made.clear()
    crowd.world.cluster.calls.clear()
    for _ in range(3):
        await crowd.resync()
    assert crowd.made == [], "nothing has changed since it was worked out"
    assert crowd.world.cluster.writes() == []
    crowd.world.edit(crowd.names[7], replicas=2)
    crowd.world.deliver()
    await crowd.resync()
    assert sorted(crowd.made) == ["_owners", "render_claim"], "one of them has, and so once for all"


async def test_while_they_are_fetched_it_is_made_as_often_as_the_volume_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crowd = Crowd(monkeypatch)
    await crowd.world.settle(*crowd.names)
    crowd.made.clear()
    for _ in range(3):
        await crowd.resync()
    assert len(crowd.made) <= 3, crowd.made


async def test_what_a_status_says_changes_nothing_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(monkeypatch, count=3)
    await crowd.fill()
    specs = crowd.world.controller._store.specs
    sharing = specs.sharing("default", volume_of(SOURCE, "main"))
    crowd.world.cluster.merge("ModelDeployment", "m000", {"status": {"message": "another"}})
    crowd.world.deliver()
    assert specs.sharing("default", volume_of(SOURCE, "main")) is sharing


# Owners


async def test_a_volume_names_no_more_owners_than_a_garbage_collector_can_ask_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "MOST_OWNERS", 3)
    crowd = Crowd(monkeypatch, count=3)
    await crowd.fill()
    assert crowd.owners == crowd.names
    crowd.world.create("more", source=SOURCE, backend={"type": "vllm"}, weights={"keep": False})
    await crowd.world.settle(*crowd.names, "more")
    assert crowd.owners == [], "it is kept"
    await crowd.world.at_rest(*crowd.names, "more")
    crowd.world.delete("m000")
    crowd.world.cluster.collect_garbage()
    await crowd.world.settle("m001", "m002", "more")
    assert crowd.owners == ["m001", "m002", "more"], "from here on it goes with the last of them"


async def test_those_that_moved_on_take_no_place_from_those_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MOST_OWNERS", 3)
    crowd = Crowd(monkeypatch, count=3)
    await crowd.fill()
    crowd.world.edit("m000", model={"source": "file:///m"})
    await crowd.world.settle(*crowd.names)
    assert crowd.owners == crowd.names
    crowd.world.create("more", source=SOURCE, backend={"type": "vllm"}, weights={"keep": False})
    await crowd.world.settle(*crowd.names, "more")
    assert crowd.owners == ["m001", "m002", "more"]
    await crowd.world.at_rest(*crowd.names, "more")


# What was worked out once is what would be worked out now

NAMESPACES, NAMES = ("red", "blue"), "abc"
PUT = st.fixed_dictionaries(
    {
        "source": st.sampled_from([SOURCE, OTHER, "file:///m"]),
        "keep": st.booleans(),
        "secret": st.sampled_from([None, "hub", "other"]),
        "size": st.sampled_from(["1Gi", "2Gi"]),
        "label": st.sampled_from([None, "42", "43"]),
        "going": st.booleans(),
        "valid": st.sampled_from([True, True, True, False]),
    }
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(NAMESPACES),
        st.sampled_from(NAMES),
        st.one_of(PUT, st.sampled_from(["go", "status", "bind", "fill"])),
    ),
    max_size=15,
)


class Model:
    """What is there, and the operator's index of it, which has seen all that came before."""

    def __init__(self) -> None:
        self.specs = Specs()
        self.resources: dict[Key, Object] = {}
        self.claims: dict[tuple[str, str], Object] = {}
        self.settings = OperatorSettings(inherited_labels=["cost-center"])
        self._version = 0

    def step(self, namespace: str, name: str, what: Any) -> None:
        key, resource = Key(namespace, name), self.resources.get(Key(namespace, name))
        self._version += 1
        match what:
            case dict():
                self.resources[key] = self._resource(namespace, name, what)
                self.specs.put(self.resources[key])
            case "go":
                self.resources.pop(key, None)
                self.specs.remove(key)
            case "status" if resource is not None:
                metadata = resource["metadata"] | {"resourceVersion": str(self._version)}
                self.resources[key] = resource | {"metadata": metadata, "status": {"seen": self._version}}
                self.specs.put(self.resources[key])
            case "bind" | "fill":
                for place, claim in self.claims.items():
                    if place[0] == namespace:
                        annotations = {"headwater.dev/filled": "true"} if what == "fill" else {}
                        metadata = claim["metadata"] | {"resourceVersion": str(self._version)}
                        metadata["annotations"] = metadata["annotations"] | annotations
                        self.claims[place] = claim | {"metadata": metadata, "status": {"phase": "Bound"}}

    def _resource(self, namespace: str, name: str, given: Any) -> Object:
        metadata: Object = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}"}
        metadata["resourceVersion"] = str(self._version)
        if given["label"] is not None:
            metadata["labels"] = {"cost-center": given["label"]}
        if given["going"]:
            metadata["deletionTimestamp"] = START.isoformat()
        model: Object = {"source": given["source"]}
        if given["secret"] is not None:
            model["secretRef"] = {"name": given["secret"]}
        spec: Object = {"model": model, "weights": {"keep": given["keep"], "size": given["size"]}}
        if not given["valid"]:
            spec["replicas"] = "many"
        return {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": spec}

    def plans(self, specs: Specs) -> Iterator[WeightsPlan]:
        """Of each user of the weights, by this index."""
        for key in sorted(self.resources):
            for source in (SOURCE, OTHER):
                sharing = specs.sharing(key.namespace, volume_of(source, "main"))
                uid = f"uid-{key}".replace("/", "-")
                if uid in sharing.users:
                    claim = self.claims.get((key.namespace, source))
                    observed = Observed(claim)
                    yield plan(sharing.users[uid], sharing, self.settings, key.namespace, observed, START)

    def reconcile(self) -> None:
        """Apply the volumes that the plans ask for."""
        for each in list(self.plans(self.specs)):
            manifest = next((it for it in each.manifests if it["kind"] == "PersistentVolumeClaim"), None)
            if manifest is None:
                continue
            place = manifest["metadata"]["namespace"], manifest["metadata"]["annotations"]["headwater.dev/source"]
            source = place[1].partition("@")[0]
            known = self.claims.get((place[0], source), {"status": {"phase": "Pending"}, "metadata": {"uid": source}})
            created = {"creationTimestamp": START.isoformat(), "resourceVersion": str(self._version)}
            metadata = created | known["metadata"] | manifest["metadata"]
            self.claims[place[0], source] = known | manifest | {"metadata": metadata}


@given(STEPS)
def test_what_was_worked_out_once_is_what_would_be_worked_out_now(steps: list[tuple[str, str, Any]]) -> None:
    model = Model()
    for step in steps:
        model.step(*step)
        anew = Specs()
        for resource in model.resources.values():
            anew.put(resource)
        assert list(model.plans(model.specs)) == list(model.plans(anew))
        model.reconcile()
