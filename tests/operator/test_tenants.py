"""Teams on one cluster: what is handed on to objects, what they are warned of, and what the platform gives to all."""

from typing import Any

import pytest
from pydantic import ValidationError

from headwater_operator.cluster.kinds import Object, annotations_of, labels_of, name_of, uid_of
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose.plain_tokens import plain_tokens
from tests.operator.test_names import theirs
from tests.operator.world import World

HUB = "hf://owner/model"
HANDED_ON: Any = {"inherited_labels": ["cost-center", "queue"], "inherited_annotations": ["note"]}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def label(world: World, name: str = "m", annotations: Any = None, **labels: Any) -> None:
    metadata = {"labels": {key.replace("_", "-"): value for key, value in labels.items()}}
    world.cluster.merge("ModelDeployment", name, {"metadata": metadata | {"annotations": annotations or {}}})


def children(world: World) -> list[Object]:
    kinds = ("Deployment", "StatefulSet", "Service", "PersistentVolumeClaim", "Job", "PodDisruptionBudget", "Secret")
    made = [each for kind in (*kinds, "NetworkPolicy") for each in world.cluster.all(kind)]
    return [each for each in made if name_of(each) != "headwater-operator-key"]


# Handed on


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 2, "weights": {"accessMode": "ReadWriteMany"}},
        {"backend": {"type": "sglang"}, "parallelism": {"tensor": 2, "nodes": 2},
         "weights": {"accessMode": "ReadWriteMany"}},
        {"backend": {"type": "tensorrt-llm", "image": "trt:1", "args": ["--backend", "tensorrt"]}},
    ],
    ids=["pods", "groups", "a build"],
)  # fmt: skip
async def test_all_that_is_made_for_a_resource_has_the_labels_that_it_is_to_have(
    monkeypatch: pytest.MonkeyPatch, spec: Any
) -> None:
    world = World(monkeypatch, engine_routers=[{"podSelector": {}}], **HANDED_ON)
    world.create(source=HUB, **spec)
    label(world, cost_center="42", team="a", annotations={"note": "b"})
    for _ in range(2):
        await world.settle()
        for job in world.cluster.all("Job"):
            world.kube.finish(name_of(job))
    await world.settle()
    assert world.condition("Ready")[0] == "True"
    made = children(world)
    assert len({each["kind"] for each in made}) >= 5
    for each in made:
        assert labels_of(each).get("cost-center") == "42", (each["kind"], name_of(each))
        assert annotations_of(each).get("note") == "b" and not {"team", "queue"} & labels_of(each).keys()
    for job in world.cluster.all("Job"):
        assert job["spec"]["template"]["metadata"]["labels"]["cost-center"] == "42"
    await world.at_rest()


async def test_a_label_that_changes_or_goes_restarts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, **HANDED_ON)
    world.create(replicas=2)
    label(world, cost_center="42")
    await world.settle()
    engines = {uid_of(pod) for pod in world.kube.pods()}
    for value in ("43", None):
        label(world, cost_center=value)
        await world.restart()
        await world.settle()
        assert {labels_of(each).get("cost-center") for each in children(world)} == {value}
    assert {uid_of(pod) for pod in world.kube.pods()} == engines
    await world.at_rest()


async def test_what_is_not_there_to_be_handed_on_costs_a_new_operator_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, **HANDED_ON)
    world.create(replicas=2)
    await world.settle()
    await world.restart()
    await world.settle()
    assert world.cluster.writes() == []


async def test_our_own_labels_are_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, inherited_labels=["app.kubernetes.io/managed-by"])
    world.create()
    world.cluster.merge("ModelDeployment", "m", {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}})
    await world.settle()
    assert {labels_of(each)["app.kubernetes.io/managed-by"] for each in children(world)} == {"headwater"}


QUEUE = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "prod"}


@pytest.mark.parametrize("nodes", [1, 2])
async def test_kueue_and_the_scheduler_find_queue_and_priority_where_they_look(
    monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    """Kueue at the workload's own labels, the scheduler in its pods."""
    world = World(monkeypatch, inherited_labels=list(QUEUE))
    template = {"spec": {"priorityClassName": "serving"}}
    weights = {"accessMode": "ReadWriteMany"}
    world.create(source=HUB, parallelism={"tensor": nodes, "nodes": nodes}, template=template, weights=weights)
    world.cluster.merge("ModelDeployment", "m", {"metadata": {"labels": QUEUE}})
    await world.settle()
    (job,) = world.cluster.all("Job")
    assert labels_of(job).items() >= QUEUE.items()
    world.kube.finish(name_of(job))
    await world.settle()
    (workload,) = world.cluster.all("Deployment" if nodes == 1 else "StatefulSet")
    assert labels_of(workload).items() >= QUEUE.items()
    pod = workload["spec"]["template"]
    assert pod["spec"]["priorityClassName"] == "serving"
    assert not pod["metadata"]["labels"].keys() & QUEUE.keys(), "a queue that changes restarts nothing"


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ({"type": "vllm"}, {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}),
        ({"type": "tgi", "image": "tgi:3"}, {"DO_NOT_TRACK": "1", "USAGE_STATS": "off"}),
    ],
)
async def test_no_engine_tells_its_maker_what_it_is_used_for(world: World, backend: Any, told: dict[str, str]) -> None:
    world.create(source=HUB, backend=backend, weights={"cached": False})
    await world.settle()
    env = {each["name"]: each.get("value") for each in container(world)["env"]}
    assert env.items() >= told.items()


# Warned


async def test_the_owner_of_a_name_is_told_who_else_asks_for_it(world: World) -> None:
    owner = theirs(world)
    world.create(model={"aliases": ["chat"]})
    await world.settle()
    told = [each for each in world.cluster.all("Event") if each["reason"] == "NameWanted"]
    assert [each["involvedObject"]["uid"] for each in told] == [uid_of(owner)]
    assert told[0]["metadata"]["namespace"] == "team"
    assert "default/m asks for chat" in told[0]["message"] and "sharedWith" in told[0]["message"]


async def test_a_token_that_all_can_read_is_warned_of_once_and_not_repeated(world: World) -> None:
    world.create(backend={"env": {"HF_TOKEN": "hf_abcdefghijklmnop"}})
    await world.settle()
    await world.restart()
    await world.settle()
    (told,) = (each for each in world.cluster.all("Event") if each["reason"] == "PlainTextToken")
    assert "spec.backend.env.HF_TOKEN" in told["message"] and "hf_abc" not in told["message"]
    assert world.condition("Ready")[0] == "True", "a warning, no more"


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"backend": {"env": {"TOKENIZERS_PARALLELISM": "false", "HF_TOKEN_PATH": "/t", "MONKEY": "1"}}}, []),
        ({"backend": {"env": {"AWS_SECRET_ACCESS_KEY": "x", "DB_PASSWORD": "y", "HF_TOKEN": ""}}}, ["AWS", "DB"]),
        ({"backend": {"env": {"SETTING": "hf_abcdefghijklmnop"}}}, ["SETTING"]),
        ({"template": {"spec": {"containers": [{"env": [{"name": "API_KEY", "value": "k"}]}]}}}, ["API_KEY"]),
        ({"template": {"spec": {"containers": [{"env": [{"name": "API_KEY", "valueFrom": {}}]}]}}}, []),
        ({"template": {"spec": {"containers": "none"}}, "backend": None}, []),
    ],
)
def test_tokens_are_known_by_the_names_and_the_beginnings_that_they_have(spec: Any, found: list[str]) -> None:
    told = plain_tokens({"spec": spec})
    assert len(told) == len(found) and all(word in each for word, each in zip(found, told, strict=True))


async def test_a_flag_that_is_not_the_tenants_is_refused_and_what_runs_goes_on(world: World) -> None:
    world.create()
    await world.settle()
    engines = {uid_of(pod) for pod in world.kube.pods()}
    world.edit(backend={"type": "headwater", "args": ["--port", "9"]})
    await world.settle()
    assert world.condition("Degraded") == ("True", "Unsupported")
    assert "spec.backend.args" in world.message("Degraded") and "--port" in world.message("Degraded")
    assert {uid_of(pod) for pod in world.kube.pods()} == engines


# For all


def container(world: World) -> Object:
    found: Object = world.child("Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


async def test_what_the_platform_gives_to_all_is_below_what_a_resource_says(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(
        monkeypatch,
        backend_images={"vllm": "mirror/vllm:v1"},
        default_env={"HF_ENDPOINT": "http://hub.internal", "A": "platform"},
        default_template={"spec": {"priorityClassName": "serving", "nodeSelector": {"pool": "gpus"}}},
    )
    template = {"spec": {"nodeSelector": {"zone": "a"}, "priorityClassName": None}}
    world.create(source=HUB, backend={"type": "vllm", "env": {"A": "mine"}}, template=template)
    await world.settle()
    job = world.child("Job", name_of(world.cluster.all("Job")[0]))["spec"]["template"]["spec"]
    assert {"name": "HF_ENDPOINT", "value": "http://hub.internal"} in job["containers"][0]["env"]
    assert job["nodeSelector"] == {"pool": "gpus", "zone": "a"}
    world.kube.finish(name_of(world.cluster.all("Job")[0]))
    await world.settle()
    assert container(world)["image"] == "mirror/vllm:v1"
    env = {each["name"]: each.get("value") for each in container(world)["env"]}
    assert (env["HF_ENDPOINT"], env["A"]) == ("http://hub.internal", "mine")
    pod = world.child("Deployment")["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "gpus", "zone": "a"} and "priorityClassName" not in pod


async def test_another_choice_of_the_platform_restarts_nothing_and_comes_with_the_next_change(world: World) -> None:
    world.create()
    await world.settle()
    before = world.child("Deployment")["spec"]["template"]
    await world.restart(default_env={"B": "1"}, default_template={"spec": {"priorityClassName": "serving"}})
    await world.settle()
    assert world.child("Deployment")["spec"]["template"] == before
    world.edit(context={"maxTokens": 64})
    await world.settle()
    pinned = world.child("Deployment")["spec"]["template"]
    assert pinned["spec"]["priorityClassName"] == "serving"
    await world.restart(default_env={}, default_template={})
    await world.settle()
    assert world.child("Deployment")["spec"]["template"] == pinned
    assert world.cluster.writes() == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"default_template": {"containers": []}}, "must be a pod template"),
        ({"default_template": "["}, "dictionary"),
        ({"backend_images": {"vlm": "x"}}, "found vlm"),
    ],
)
def test_a_platform_that_says_nonsense_is_told_at_the_start(setting: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OperatorSettings(**setting)


def test_settings_are_read_from_text_too() -> None:
    read = OperatorSettings(default_env='{"A": "1"}', backend_images='{"vllm": "x:1"}')  # type: ignore[arg-type]
    assert (read.default_env, read.backend_images) == ({"A": "1"}, {"vllm": "x:1"})
