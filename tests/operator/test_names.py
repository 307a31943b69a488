"""A name that is another namespace's: who asks for it is told, who has it keeps it, and nobody is searched for."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import names as rule
from headwater_operator.cluster.kinds import MODEL_DEPLOYMENT, Key, Object
from headwater_operator.watch.names import Names
from headwater_operator.watch.store import Store
from tests.operator.world import WEIGHTLESS, World

NOW = datetime(2026, 11, 2, 12, tzinfo=UTC)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def theirs(world: World, name: str = "chat", **spec: Any) -> Object:
    """A ModelDeployment of another namespace."""
    model = {"source": WEIGHTLESS, **spec.pop("model", {})}
    metadata = {"name": name, "namespace": "team"}
    return world.cluster.add(
        {
            "apiVersion": MODEL_DEPLOYMENT.api_version,
            "kind": MODEL_DEPLOYMENT.name,
            "metadata": metadata,
            "spec": {"model": model, "backend": {"type": "headwater"}, **spec},
        }
    )


async def test_who_asks_in_vain_is_told_whose_it_is_and_what_to_do(world: World) -> None:
    theirs(world)
    world.create(model={"aliases": ["chat"]})
    await world.settle()
    assert world.condition("Degraded") == ("True", "NameTaken")
    for words in ("chat is of namespace team (ModelDeployment chat)", "default/m", "spec.routing.sharedWith"):
        assert words in world.message("Degraded")
    assert world.events().count(("Warning", "NameTaken")) == 1
    await world.at_rest()


async def test_its_engines_serve_all_the_same_and_the_status_says_so(world: World) -> None:
    theirs(world)
    world.kube.loads = lambda pod: False
    world.create(model={"aliases": ["chat"]})
    await world.settle()
    assert world.condition("Ready") == ("False", "Loading")
    assert world.condition("Progressing") == ("True", "Loading"), "nothing holds it up"
    assert world.status()["phase"] == "Loading"
    world.kube.loads = lambda pod: True
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")
    assert world.condition("Degraded") == ("True", "NameTaken")


async def test_what_is_worse_is_told_first(world: World) -> None:
    theirs(world)
    world.create(model={"aliases": ["chat"]}, loadTimeout="soon")
    await world.settle()
    assert world.condition("Degraded") == ("True", "InvalidSpec")


async def test_what_a_namespace_has_is_written_down_with_its_time_and_stays(world: World) -> None:
    world.create(model={"aliases": ["chat"]})
    await world.settle()
    had = world.status()["claimedNames"]
    assert had == [{"name": name, "since": "2026-11-02T12:00:00Z"} for name in ("m", "chat")]
    world.clock.passed += 3600
    theirs(world)
    world.edit(replicas=2)
    await world.settle()
    assert world.status()["claimedNames"] == had, "also against one that is called so"
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_a_name_that_is_only_lent_is_not_written_down(world: World) -> None:
    theirs(world, routing={"sharedWith": ["default"]})
    world.create(model={"aliases": ["chat"]})
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert [each["name"] for each in world.status()["claimedNames"]] == ["m"]


async def test_neighbours_that_share_a_name_contest_nothing(world: World) -> None:
    world.create("a", model={"aliases": ["chat"]})
    world.create("b", model={"aliases": ["chat"]})
    await world.settle("a", "b")
    assert world.condition("Degraded", "a") == world.condition("Degraded", "b") == ("False", "AsExpected")


@pytest.mark.parametrize("how", ["deleted", "renamed", "shared"])
async def test_who_waited_for_a_name_is_reconciled_as_soon_as_it_may_have_it(world: World, how: str) -> None:
    other = theirs(world, "other", model={"aliases": ["chat"]})
    world.clock.passed += 1
    world.create(model={"aliases": ["chat"]})
    await world.settle()
    assert world.condition("Degraded") == ("True", "NameTaken")
    looked_at = asked(world)
    match how:
        case "deleted":
            world.cluster.end(other)
        case "renamed":
            world.cluster.merge("ModelDeployment", "other", {"spec": {"model": {"aliases": []}}}, namespace="team")
        case "shared":
            shared = {"spec": {"routing": {"sharedWith": ["*"]}}}
            world.cluster.merge("ModelDeployment", "other", shared, namespace="team")
    world.deliver()
    assert Key("default", "m") in looked_at
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_a_status_that_is_written_has_nobody_else_reconciled(world: World) -> None:
    theirs(world)
    world.create(model={"aliases": ["chat"]})
    await world.settle()
    looked_at = asked(world)
    world.cluster.merge("ModelDeployment", "chat", {"status": {"phase": "Ready"}}, namespace="team")
    world.deliver()
    assert looked_at == [Key("team", "chat")]


def asked(world: World) -> list[Key]:
    """Who is put into the queue from now on."""
    added: list[Key] = []
    world.controller._queue.add = added.append  # type: ignore[method-assign]
    return added


# The index


def resource(namespace: str, name: str, others: list[str], shared: list[str], created: int, version: int) -> Object:
    metadata = {"namespace": namespace, "name": name, "resourceVersion": str(version)}
    return {
        "apiVersion": MODEL_DEPLOYMENT.api_version,
        "kind": MODEL_DEPLOYMENT.name,
        "metadata": metadata | {"creationTimestamp": f"2026-11-02T12:00:{created:02}Z"},
        "spec": {"model": {"source": WEIGHTLESS, "aliases": others}, "routing": {"sharedWith": shared}},
    }


NAMES = st.sampled_from(["a", "b", "c"])
RESOURCES = st.builds(
    resource,
    st.sampled_from(["x", "y", "z"]),
    NAMES,
    st.lists(st.sampled_from(["a", "b", "c", "x/a", "y/b"]), max_size=3, unique=True),
    st.lists(st.sampled_from(["x", "*"]), max_size=1),
    st.integers(0, 3),
    st.just(1),
)


@given(st.lists(RESOURCES, max_size=8))
def test_a_look_at_those_who_have_a_say_comes_to_what_a_look_at_all_does(resources: list[Object]) -> None:
    store = Store()
    for version, each in enumerate(resources, 1):
        each["metadata"]["resourceVersion"] = str(version)
        store.put(each)
    everyone = [rule.read(each) for each in store.all(MODEL_DEPLOYMENT)]
    found = rule.claims(everyone)
    for claimant in everyone:
        record, problem = store.names.standing(Key(*claimant.key), NOW)
        assert record == rule.record(claimant, found, "2026-11-02T12:00:00Z")
        assert (problem is not None) is (claimant.key in found.losers)
        for name, namespace in list(found.losers.get(claimant.key, {}).items())[:3]:
            assert problem is not None and f"{name} is of namespace {namespace}" in problem.message


@given(st.lists(RESOURCES, max_size=8))
def test_nothing_is_left_of_what_is_gone(resources: list[Object]) -> None:
    store = Store()
    for version, each in enumerate(resources, 1):
        each["metadata"]["resourceVersion"] = str(version)
        store.put(each)
    store.replace(MODEL_DEPLOYMENT, None, [], 100)
    assert not store.names._claimants and not store.names._asking


def test_among_a_thousand_only_those_who_ask_for_the_name_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Names()
    for number in range(1000):
        index.put(resource("x", f"m{number}", [], [], 0, 1))
    index.put(resource("y", "other", ["m7"], [], 1, 1))
    looked_through: list[int] = []
    claims = rule.claims

    def counted(claimants: Any) -> Any:
        looked_through.append(len(list(claimants)))
        return claims(claimants)

    monkeypatch.setattr(rule, "claims", counted)
    for number in range(1000):
        index.standing(Key("x", f"m{number}"), NOW)
    assert sum(looked_through) == 1001


@pytest.mark.parametrize("gone", [{"deletionTimestamp": "2026-11-02T12:00:00Z"}, {}])
def test_who_is_about_to_go_or_makes_no_sense_asks_for_nothing(gone: Object) -> None:
    index = Names()
    it = resource("x", "m", [], [], 0, 1)
    it["metadata"] |= gone
    if not gone:
        it["spec"] = {}
    index.put(it)
    assert index.standing(Key("x", "m"), NOW) == ([], None)
