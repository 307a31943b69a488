"""Reconciling costs the same however many neighbours there are: specs are read once a version, and found by index."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headwater_operator.cluster.kinds import POD, Key, Object, uid_of
from headwater_operator.render.weights import volume_of
from headwater_operator.watch import specs as module
from headwater_operator.watch.specs import Specs
from headwater_operator.watch.store import Store
from tests.operator.world import World

SOURCE = "hf://org/model"
VOLUME = volume_of(SOURCE, "main")


def resource(name: str, version: int = 1, namespace: str = "default", **spec: Any) -> Object:
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": str(version)}
    spec = {"model": {"source": SOURCE}} | spec
    return {"apiVersion": "headwater.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": spec}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the resources that were read, one after the other."""
    read, names = module._read, list[str]()

    def counted(each: Object) -> Any:
        names.append(each["metadata"]["name"])
        return read(each)

    monkeypatch.setattr(module, "_read", counted)
    return names


async def test_a_reconciliation_reads_its_own_spec_and_none_of_its_neighbours(
    monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    world = World(monkeypatch)
    for number in range(20):
        world.create(f"m{number}")
        world.create(f"other{number}", source=f"hf://org/other{number}")
    world.deliver()
    world.create("mine", source=SOURCE)
    world.create("yours", source=SOURCE)
    await world.settle("mine")
    assert set(reads) == {"mine", "yours"}, "those with the same weights have a say in the volume"
    reads.clear()
    await world.settle("m7")
    assert set(reads) == {"m7"}


async def test_a_spec_is_read_once_for_each_of_its_versions(monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    world = World(monkeypatch)
    world.create()
    await world.settle()
    reads.clear()
    for _ in range(5):
        await world.reconcile()
    assert reads == []
    world.edit(replicas=2)
    for _ in range(5):
        await world.reconcile()
    assert len(reads) == 1, "after the edit, and not after the status"


def test_what_makes_no_sense_is_told_each_time_and_shares_nothing() -> None:
    specs = Specs()
    specs.put(resource("bad", replicas="many"))
    for _ in range(2):
        with pytest.raises(ValidationError):
            specs.read(Key("default", "bad"))
    specs.put({"kind": "ModelDeployment", "metadata": {"name": "worse", "namespace": "default"}, "spec": None})
    assert specs.sharing("default", VOLUME).users == {}


def test_one_that_is_about_to_go_shares_no_weights() -> None:
    specs = Specs()
    going = resource("going")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    specs.put(going)
    specs.put(resource("staying"))
    assert list(specs.sharing("default", VOLUME).users) == ["uid-staying"]


CHANGES = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(["here", "there"]),
    st.sampled_from([SOURCE, "s3://b/m", "file:///m"]),
    st.sampled_from([None, True, False]),
    st.booleans(),
)


@given(st.lists(CHANGES, max_size=12))
def test_the_index_by_weights_never_lies(changes: list[tuple[str, str, str, bool | None, bool]]) -> None:
    specs, model = Specs(), dict[Key, Object]()
    for name, namespace, source, cached, gone in changes:
        key = Key(namespace, name)
        each = resource(name, namespace=namespace, model={"source": source}, weights={"cached": cached})
        if gone:
            specs.remove(key)
            model.pop(key, None)
        else:
            specs.put(each)
            model[key] = each
    for namespace in ("here", "there"):
        for source in (SOURCE, "s3://b/m", "file:///m"):
            expected = {
                key
                for key, each in model.items()
                if key.namespace == namespace
                and each["spec"]["model"]["source"] == source
                and each["spec"]["weights"]["cached"] is not False
                and not source.startswith("file")
            }
            assert specs.users(namespace, volume_of(source, "main")) == expected


def test_objects_are_found_by_their_owner_until_they_go() -> None:
    store = Store()
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": "1", "resourceVersion": "5"},
    }
    pod["metadata"]["ownerReferences"] = [{"uid": "job", "kind": "Job", "name": "j"}]  # type: ignore[index]
    store.put(pod)
    assert [uid_of(each) for each in store.owned("job", POD)] == ["1"]
    store.remove(pod)
    assert store.owned("job", POD) == []
