"""Who counts the replicas, which of them go, and what wakes a model that sleeps."""

import pytest

from headwater_operator.cluster.kinds import Object, annotations_of, name_of
from headwater_operator.diagnose.ceiling import beyond, capped, most_replicas
from headwater_operator.metrics import CONDITIONS
from headwater_operator.reconcile.applier import AUTOSCALER
from tests.operator.rendering import deployment
from tests.operator.world import World

RULE: Object = {"min": 1, "max": 9, "inFlightPerReplica": 1}
COST = "controller.kubernetes.io/pod-deletion-cost"
GROUPS: Object = {"backend": {"type": "vllm"}, "parallelism": {"tensor": 2, "nodes": 2}}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def loaded(world: World, requests: int, seconds: float = 80) -> None:
    """So many requests in flight for so long."""
    for _ in range(int(seconds // 2)):
        world.clock.passed += 2
        world.report(requests)
    await world.settle()


def owners_of_replicas(world: World) -> set[str]:
    fields = world.child("Deployment")["metadata"]["managedFields"]
    return {each["manager"] for each in fields if "('spec', 'replicas')" in each["fieldsV1"]}


async def test_pain_06_the_autoscaler_owns_replicas(world: World) -> None:
    world.create(autoscaling=RULE)
    await world.settle()
    await loaded(world, 5)
    assert world.replicas() == 5
    world.once_had()
    world.edit(context={"maxTokens": 64})
    await world.settle()
    assert owners_of_replicas(world) == {AUTOSCALER}
    assert world.replicas() == 5
    assert world.once_had() == [], "not even for a moment"


async def test_pain_06_turning_autoscaling_on_begins_at_what_runs(world: World) -> None:
    world.create(replicas=4)
    await world.settle()
    world.once_had()
    world.edit(replicas=None, autoscaling=RULE)
    await world.settle()
    assert AUTOSCALER in owners_of_replicas(world)
    world.edit(context={"maxTokens": 64})
    await world.settle()
    assert owners_of_replicas(world) == {AUTOSCALER}
    assert world.replicas() == 4
    assert world.once_had() == []
    assert ("Normal", "Scaled") not in world.events()


async def test_pain_06_turning_autoscaling_off_gives_the_number_back_to_the_spec(world: World) -> None:
    world.create(autoscaling=RULE)
    await world.settle()
    await loaded(world, 5)
    world.once_had()
    world.edit(autoscaling=None, replicas=3)
    await world.settle()
    assert world.replicas() == 3
    assert "autoscaling" not in world.status()
    world.edit(context={"maxTokens": 64})
    await world.settle()
    assert world.replicas() == 3
    assert world.once_had() == []


async def test_pain_06_off_and_on_again_never_resets(world: World) -> None:
    world.create(autoscaling=RULE)
    await world.settle()
    await loaded(world, 5)
    world.once_had()
    for change in ({"autoscaling": None, "replicas": 5}, {"autoscaling": RULE, "replicas": None}):
        world.edit(**change)
        await world.settle()
        world.edit(context={"maxTokens": len(str(change))})
        await world.settle()
    assert world.once_had() == [] and world.replicas() == 5


async def test_pain_06_made_with_a_minimum_of_zero_it_begins_asleep(world: World) -> None:
    world.create(autoscaling={**RULE, "min": 0})
    await world.settle()
    assert world.replicas() == 0
    assert world.once_had() == []
    assert world.status()["phase"] == "ScaledToZero"
    assert world.condition("Ready") == ("True", "ScaledToZero")


async def test_pain_06_what_a_person_scales_is_put_back(world: World) -> None:
    world.create(autoscaling=RULE)
    await world.settle()
    world.cluster.merge("Deployment", "m", {"spec": {"replicas": 8}})
    await world.settle()
    assert world.replicas() == 1


async def test_pain_06_an_autoscaler_from_elsewhere_writes_the_spec(world: World) -> None:
    world.create(replicas=1)
    await world.settle()
    world.edit(replicas=3)  # the scale subresource
    await world.settle()
    assert world.replicas() == 3 and world.status()["replicas"] == 3
    assert world.status()["selector"] == "headwater.dev/deployment=m,app.kubernetes.io/component=engine"


async def test_pain_07_the_idlest_go_first(world: World) -> None:
    world.create(replicas=3)
    await world.settle()
    busiest, idlest, middle = (name_of(pod) for pod in world.kube.pods())
    world.report(30, pods={busiest: 20, idlest: 0, middle: 10})
    world.edit(replicas=2)
    await world.settle()
    assert {name_of(pod) for pod in world.kube.pods()} == {busiest, middle}
    world.report(30, pods={busiest: 20, middle: 30})
    world.edit(replicas=1)
    await world.settle()
    assert [name_of(pod) for pod in world.kube.pods()] == [middle]


async def test_pain_07_they_are_marked_before_the_number_is_lowered(world: World) -> None:
    world.create(replicas=3)
    await world.settle()
    world.cluster.calls.clear()
    world.edit(replicas=1)
    await world.reconcile()
    kinds = [call.kind for call in world.cluster.writes()]
    assert kinds.count("Pod") == 3
    assert kinds.index("Deployment") > max(number for number, kind in enumerate(kinds) if kind == "Pod")


async def test_pain_07_the_autoscaler_takes_the_idlest_as_well(world: World) -> None:
    world.create(autoscaling={**RULE, "scaleDownDelay": "0s", "stableWindow": "10s"})
    await world.settle()
    await loaded(world, 3)
    busy = name_of(world.kube.pods()[0])
    for _ in range(40):
        world.clock.passed += 2
        world.report(1, pods={name_of(pod): int(name_of(pod) == busy) for pod in world.kube.pods()})
    await world.settle()
    assert [name_of(pod) for pod in world.kube.pods()] == [busy]


async def test_pain_07_a_pod_whose_load_nobody_knows_is_taken_last(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    known, unknown = (name_of(pod) for pod in world.kube.pods())
    world.report(9, pods={known: 9})
    world.edit(replicas=1)
    await world.settle()
    assert [name_of(pod) for pod in world.kube.pods()] == [unknown]


async def test_pain_07_the_idlest_group_goes_first(world: World) -> None:
    world.create(replicas=2, **GROUPS)
    await world.settle()
    busy = next(name_of(pod) for pod in world.kube.pods(group="1") if name_of(pod).endswith("-0"))
    idle = next(name_of(pod) for pod in world.kube.pods(group="0") if name_of(pod).endswith("-0"))
    world.report(9, pods={busy: 9, idle: 0})
    world.edit(replicas=1)
    await world.settle()
    assert {name_of(pod) for pod in world.kube.pods()} == {busy, busy[:-1] + "1"}


async def test_marks_are_not_written_again(world: World) -> None:
    world.create(replicas=3)
    await world.settle()
    world.edit(replicas=2)
    await world.settle()
    assert all(COST in annotations_of(pod) for pod in world.kube.pods())
    await world.at_rest()


async def test_pain_14_what_the_gateway_holds_wakes_it(world: World) -> None:
    world.create(autoscaling={**RULE, "min": 0})
    await world.settle()
    world.clock.passed += 2
    assert world.report(held=1), "somebody has to look"
    await world.settle()
    assert world.replicas() == 1
    assert world.condition("Ready") == ("True", "ReplicasReady")
    assert ("Normal", "Scaled") in world.events()


async def test_pain_14_it_goes_to_sleep_when_nobody_asks(world: World) -> None:
    world.create(autoscaling={**RULE, "min": 0, "scaleDownDelay": "30s"})
    await world.settle()
    world.clock.passed += 2
    world.report(held=1)
    await world.settle()
    await loaded(world, 0, seconds=200)
    assert world.replicas() == 0
    assert world.status()["phase"] == "ScaledToZero"
    assert world.kube.pods() == []
    await world.at_rest()


async def test_pain_14_no_report_is_no_reason_to_scale_down(world: World) -> None:
    world.create(autoscaling={**RULE, "scaleDownDelay": "10s"})
    await world.settle()
    await loaded(world, 3)
    for _ in range(300):
        world.clock.passed += 2
        world.scaling._take(world.no_report)
    await world.settle()
    assert world.replicas() == 3


async def test_pain_14_a_router_that_does_not_answer_is_no_reason_either(world: World) -> None:
    world.create(autoscaling={**RULE, "scaleDownDelay": "10s"})
    await world.settle()
    await loaded(world, 3)
    for _ in range(300):
        world.clock.passed += 2
        world.report(0, failures={"http://router-2": "no answer"})
    await world.settle()
    assert world.replicas() == 3


async def test_the_decision_survives_a_new_operator(world: World) -> None:
    world.create(autoscaling=RULE)
    await world.settle()
    await loaded(world, 5)
    assert world.status()["autoscaling"]["desired"] == 5
    await world.restart()
    await world.settle()
    assert world.replicas() == 5
    assert world.cluster.writes() == []


async def test_the_waiting_for_fewer_survives_a_new_operator(world: World) -> None:
    world.create(autoscaling={**RULE, "scaleDownDelay": "10m"})
    await world.settle()
    await loaded(world, 5)
    await loaded(world, 1, seconds=8 * 60)
    assert world.replicas() == 5
    assert world.status()["autoscaling"]["memory"]["enough"]
    await world.restart()
    await world.settle()
    await loaded(world, 1, seconds=7 * 60)
    assert world.replicas() == 1, "of the 10 min, 8 passed before"


async def test_bounds_that_change_count_at_once(world: World) -> None:
    world.create(autoscaling=RULE)
    await world.settle()
    world.edit(autoscaling={"min": 3})
    await world.settle()
    assert world.replicas() == 3
    world.edit(autoscaling={"min": 1, "max": 2})
    await world.settle()
    assert world.replicas() == 2


# The platform's ceiling


async def test_no_more_replicas_are_made_than_the_platform_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_replicas=3)
    world.create(replicas=10_000)
    await world.settle()
    assert world.replicas() == 3 and len(world.kube.pods()) == 3
    assert world.condition("Degraded") == ("True", "ReplicasCapped")
    assert "spec.replicas: 10000" in world.message("Degraded") and "operator.maxReplicas" in world.message("Degraded")
    assert world.condition("Ready") == ("True", "ReplicasReady"), "it serves"
    world.edit(replicas=2)
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")


@pytest.mark.parametrize(("nodes", "most", "made"), [(2, 5, 2), (4, 3, 0)])
async def test_the_pods_of_a_group_count_one_by_one(
    monkeypatch: pytest.MonkeyPatch, nodes: int, most: int, made: int
) -> None:
    world = World(monkeypatch, max_replicas=most)
    parallelism = {"tensor": nodes, "nodes": nodes}
    world.create(replicas=4, backend={"type": "headwater"}, parallelism=parallelism)
    await world.settle()
    assert len(world.cluster.all("StatefulSet")) == made
    assert world.condition("Degraded") == ("True", "ReplicasCapped")
    told = f"spec.replicas: 4 of {nodes} pods each are more than the {most} pods that the platform allows"
    assert told in world.message("Degraded") and f"there will be {made} at most" in world.message("Degraded")


def test_the_load_of_groups_makes_no_more_pods_than_the_platform_allows() -> None:
    spec = deployment(parallelism={"tensor": 2, "nodes": 2}, autoscaling={"min": 2, "max": 50}).spec
    assert spec.autoscaling is not None
    rule = capped(spec.autoscaling, most_replicas(spec, 3))
    assert (rule.min, rule.max) == (1, 1)
    problem = beyond(spec, 3)
    assert problem is not None and "spec.autoscaling.max: 50 of 2 pods each" in problem.message


async def test_the_load_makes_no_more_replicas_than_the_platform_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_replicas=3)
    world.create(autoscaling={"min": 1, "max": 50, "inFlightPerReplica": 1})
    await world.settle()
    assert world.condition("Degraded") == ("True", "ReplicasCapped")
    for _ in range(5):
        world.clock.passed += 2
        world.report(in_flight=40)
        await world.settle()
    assert world.replicas() == 3
    assert world.status()["autoscaling"]["desired"] == 3


# What Prometheus is told


async def test_each_condition_is_a_metric_until_the_resource_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.create()
    await world.settle()

    def told() -> dict[str, float | None]:
        labels = {"namespace": "default", "deployment": "m"}
        return {
            kind: world.metrics.registry.get_sample_value("headwater_operator_condition", labels | {"condition": kind})
            for kind in CONDITIONS
        }

    assert told() == {"Ready": 1, "Progressing": 0, "Degraded": 0, "ModelLoaded": 1, "Routable": None}
    world.report(ready=0)
    await world.reconcile()
    assert told()["Routable"] == 0
    world.delete()
    await world.reconcile()
    assert set(told().values()) == {None}
