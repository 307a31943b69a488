"""What cannot be done is said in the status, tried again later, and disturbs nothing that runs."""

from typing import Any

import pytest

from headwater_operator.cluster.api import ApiError
from headwater_operator.cluster.kinds import Object, uid_of
from tests.operator.fake_api import Call
from tests.operator.world import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def refuse(world: World, verb: str, kind: str, status: int, message: str = "not you") -> None:
    def answer(call: Call) -> ApiError | None:
        return ApiError(status, "Reason", message) if (call.verb, call.kind) == (verb, kind) else None

    world.cluster.refuses = answer


# A spec that cannot be


async def test_what_the_rules_forbid_is_said_with_its_field(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    engines = {uid_of(pod) for pod in world.kube.pods()}
    world.edit(loadTimeout="soon")
    await world.settle()
    assert world.condition("Degraded") == ("True", "InvalidSpec")
    assert "spec.loadTimeout" in world.message("Degraded")
    assert world.condition("Ready") == ("False", "InvalidSpec")
    assert world.condition("Progressing") == ("False", "Stopped")
    assert world.status()["readyReplicas"] == 2
    assert {uid_of(pod) for pod in world.kube.pods()} == engines, "what runs goes on"
    assert world.events().count(("Warning", "InvalidSpec")) == 1
    await world.at_rest()


async def test_a_spec_that_is_mended_is_carried_out(world: World) -> None:
    world.create(loadTimeout="soon")
    await world.settle()
    assert not world.cluster.all("Deployment")
    world.edit(loadTimeout="5m")
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_what_the_backend_cannot_do_is_unsupported(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    world.edit(quantization="awq", backend={"type": "transformers"})
    await world.settle()
    assert world.condition("Degraded") == ("True", "Unsupported")
    assert world.condition("Ready") == ("False", "Unsupported")
    assert "transformers" in world.message("Degraded")
    assert world.status()["readyReplicas"] == 2, "the old ones go on, and the status says so"


async def test_pods_of_a_newer_operator_are_left_as_they_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater_operator.render import pin, versions

    current = pin.CURRENT_RENDER_VERSION
    monkeypatch.setattr(pin, "CURRENT_RENDER_VERSION", 7)
    monkeypatch.setitem(versions.RENDERERS, 7, versions.RENDERERS[1])
    world.create()
    await world.settle()
    template = world.child("Deployment")["spec"]["template"]
    monkeypatch.delitem(versions.RENDERERS, 7)
    monkeypatch.setattr(pin, "CURRENT_RENDER_VERSION", current)
    await world.restart()
    await world.settle()
    assert world.condition("Degraded") == ("True", "Unsupported")
    assert "newer operator" in world.message("Degraded")
    assert world.child("Deployment")["spec"]["template"] == template
    assert world.condition("Ready") == ("True", "ReplicasReady"), "its pods serve as they should"


# The API server says no


@pytest.mark.parametrize("status", [403, 422])
@pytest.mark.parametrize("kind", ["Deployment", "Service"])
async def test_what_is_refused_is_said_and_tried_again_later(world: World, kind: str, status: int) -> None:
    refuse(world, "apply", kind, status, "exceeded quota: gpus")
    world.create()
    again = await world.reconcile()
    assert again == 60
    assert world.condition("Degraded") == ("True", "Refused")
    assert world.condition("Ready") == ("False", "Refused")
    assert "exceeded quota: gpus" in world.message("Degraded")
    for _ in range(3):
        await world.reconcile()
    assert world.events().count(("Warning", "Refused")) == 1
    world.cluster.refuses = lambda call: None
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")


TYPO = (
    "failed to create typed patch object (default/m; apps/v1, Kind=Deployment): .spec.template.spec.nodeSelektor: "
    "field not declared in schema"
)


async def test_a_typo_in_the_template_is_told_at_once_and_ready_is_not_stale(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    refuse(world, "apply", "Deployment", 500, TYPO)
    world.edit(template={"spec": {"nodeSelektor": {"a": "b"}}})
    await world.reconcile()
    assert world.condition("Degraded") == ("True", "Refused")
    assert "nodeSelektor" in world.message("Degraded")
    assert world.condition("Ready") == ("False", "Refused")
    assert world.status()["readyReplicas"] == 2


@pytest.mark.parametrize("error", [ApiError(500, "InternalError", "etcd has its moments"), ValueError("no such thing")])
async def test_whatever_fails_three_times_writes_a_condition_with_the_last_error(
    world: World, error: Exception
) -> None:
    def answer(call: Call) -> Any:
        return error if (call.verb, call.kind) == ("apply", "Deployment") else None

    world.cluster.refuses = answer
    world.create()
    for failures in range(3):
        assert world.status() == {}, "what passes in a moment alarms nobody"
        with pytest.raises(type(error)):
            await world.reconcile(failures=failures)
    assert world.condition("Degraded") == ("True", "ReconcileFailed")
    assert str(error) in world.message("Degraded")
    assert world.condition("Ready") == ("False", "ReconcileFailed")
    version = world.cluster.version
    with pytest.raises(type(error)):
        await world.reconcile(failures=3)
    assert world.cluster.version == version, "the same is not told again"
    world.cluster.refuses = lambda call: None
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert world.condition("Ready") == ("True", "ReplicasReady")


@pytest.mark.parametrize("status", [0, 409, 429, 500, 503])
async def test_what_may_pass_is_for_the_queue_to_try_again(world: World, status: int) -> None:
    refuse(world, "apply", "Deployment", status)
    world.create()
    with pytest.raises(ApiError):
        await world.reconcile()
    assert world.status() == {}, "nobody is alarmed"
    world.cluster.refuses = lambda call: None
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_status_that_cannot_be_written_is_tried_again(world: World) -> None:
    refuse(world, "apply status", "ModelDeployment", 500)
    world.create(replicas=2)
    with pytest.raises(ApiError):
        await world.reconcile()
    assert world.status() == {}
    world.cluster.refuses = lambda call: None
    await world.settle()
    assert world.events().count(("Normal", "ReplicasReady")) == 1


async def test_an_event_that_is_refused_stops_nothing(world: World) -> None:
    refuse(world, "create", "Event", 403)
    world.create()
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")


@pytest.mark.parametrize("seed", range(12))
async def test_whichever_call_fails_it_gets_there_in_the_end(world: World, seed: int) -> None:
    """The call with this number fails, and then every third."""

    def answer(call: Call) -> ApiError | None:
        return ApiError(503, "Busy", "later") if (len(world.cluster.calls) + seed) % 3 == 0 else None

    world.cluster.refuses = answer
    world.create(replicas=2, autoscaling=None)
    for _ in range(60):
        try:
            await world.reconcile()
        except ApiError:
            continue
        finally:
            world.kube.step()
    assert world.condition("Ready") == ("True", "ReplicasReady")


# What the cluster's controllers say


def condition(**fields: str) -> Object:
    return {"status": {"conditions": [fields]}}


async def test_what_takes_longer_than_it_may_is_a_load_timeout(world: World) -> None:
    world.create(replicas=2)
    await world.settle()
    old = {uid_of(pod) for pod in world.kube.pods()}
    world.kube.loads = lambda pod: uid_of(pod) in old
    world.edit(context={"maxTokens": 64})
    await world.settle()
    late = condition(type="Progressing", status="False", reason="ProgressDeadlineExceeded")
    world.cluster.merge("Deployment", "m", late)
    await world.settle()
    assert world.condition("Degraded") == ("True", "LoadTimeout")
    assert world.condition("Progressing") == ("False", "Stopped")
    assert world.condition("Ready") == ("False", "LoadTimeout")
    assert world.status()["readyReplicas"] == 2
    assert world.events().count(("Warning", "LoadTimeout")) == 1


async def test_the_deadline_follows_the_load_timeout(world: World) -> None:
    world.create(loadTimeout="1h")
    await world.settle()
    assert world.child("Deployment")["spec"]["progressDeadlineSeconds"] == 3600 + 600


async def test_pods_that_a_quota_does_not_let_in_are_refused(world: World) -> None:
    world.create()
    world.kube.loads = lambda pod: False
    await world.settle()
    said = condition(type="ReplicaFailure", status="True", reason="FailedCreate", message="exceeded quota: pods=0")
    world.cluster.merge("Deployment", "m", said)
    await world.settle()
    assert world.condition("Degraded") == ("True", "PodsRefused")
    assert "exceeded quota: pods=0" in world.message("Degraded")


async def test_what_old_pods_suffer_from_is_no_problem_of_the_new(world: World) -> None:
    world.kube.loads = lambda pod: False
    world.create()
    await world.settle()
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    crash = {"name": "engine", "restartCount": 5, "state": {"waiting": waiting}, "lastState": {}}
    for pod in world.kube.pods():
        world.cluster.merge("Pod", pod["metadata"]["name"], {"status": {"containerStatuses": [crash]}})
    await world.settle()
    assert world.condition("Degraded") == ("True", "CrashLoop")
    assert world.condition("Ready") == ("False", "CrashLoop")
    world.edit(context={"maxTokens": 64})
    await world.reconcile()
    assert world.condition("Degraded")[0] == "False", "the change may be the cure"


async def test_a_crash_loop_is_degraded_until_ten_minutes_without_a_restart(world: World) -> None:
    world.create()
    await world.settle()
    for count in range(2, 5):
        world.clock.passed += 100
        ended = {"exitCode": 1, "message": "cannot allocate", "finishedAt": world.clock.now().isoformat()}
        crash = {"name": "engine", "restartCount": count, "state": {"running": {}}, "lastState": {"terminated": ended}}
        (pod,) = world.kube.pods()
        world.cluster.merge("Pod", pod["metadata"]["name"], {"status": {"containerStatuses": [crash]}})
        await world.settle()
        assert world.condition("Degraded") == ("True", "CrashLoop"), "though it is ready at this moment"
        assert f"has ended {count} times" in world.message("Degraded")
        assert "cannot allocate" in world.message("Degraded")
        assert world.condition("Ready") == ("False", "CrashLoop")
    assert world.events().count(("Warning", "CrashLoop")) == 1
    assert world.status()["readyReplicas"] == 1, "it does get requests"
    world.clock.passed += 590
    again = await world.reconcile()
    assert again == 10
    assert world.condition("Degraded") == ("True", "CrashLoop")
    world.clock.passed += 10
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert world.condition("Ready") == ("True", "ReplicasReady")


async def test_a_pod_that_no_node_takes_is_told_in_the_schedulers_words_and_not_as_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, slots=0)
    world.create()
    await world.settle()
    late = condition(type="Progressing", status="False", reason="ProgressDeadlineExceeded")
    world.cluster.merge("Deployment", "m", late)
    await world.settle()
    assert world.condition("Degraded") == ("True", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in world.message("Degraded")
    assert "loadTimeout" not in world.message("Degraded")


# What is said of a template


async def test_a_typo_in_the_template_is_told_before_the_weights_are_there(world: World) -> None:
    refuse(world, "try", "Deployment", 500, TYPO)
    world.create(source="hf://owner/model", template={"spec": {"nodeSelektor": {"a": "b"}}})
    await world.reconcile()
    await world.reconcile()
    assert world.condition("Degraded") == ("True", "Refused")
    assert "nodeSelektor" in world.message("Degraded")
    assert world.cluster.all("Job"), "the weights come all the same"
    world.cluster.refuses = lambda call: None
    world.edit(template=None)
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert world.condition("Ready") == ("False", "Downloading")
    await world.at_rest()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"containers": [{"name": "vllm", "env": []}]}, "the server's container is called `engine`"),
        ({"containers": [{"name": "engine"}, {"resources": {}}]}, "has no image"),
        ({"containers": ["engine"]}, "must hold maps"),
        ({"volumes": [7]}, "must hold maps"),
    ],
)
async def test_a_template_that_cannot_be_merged_is_told_with_its_field(
    world: World, template: Object, words: str
) -> None:
    world.create(template={"spec": template})
    await world.settle()
    assert world.condition("Degraded") == ("True", "Unsupported")
    assert words in world.message("Degraded") and "spec.template" in world.message("Degraded")


@pytest.mark.parametrize("cpu", ["1k", "1e99999999", "2.5", ".5", "100u", 3])
async def test_every_amount_of_cores_that_kubernetes_takes_is_rendered(world: World, cpu: Any) -> None:
    world.create(resources={"limits": {"cpu": cpu}})
    await world.settle()
    assert world.condition("Ready") == ("True", "ReplicasReady")
