"""Teams on one cluster: what they are warned of, what is refused, what is handed on, and how much they may have."""

import json
from collections.abc import Iterator

import pytest

from e2e.conftest import RELEASE, fresh_namespace
from e2e.harness import (
    SYSTEM,
    Client,
    CommandError,
    Object,
    apply,
    condition,
    eventually,
    eventually_told,
    find,
    get,
    kubectl,
    run,
    wait_ready,
    wait_routable,
)
from e2e.models import model
from e2e.simulation import add_nodes, engine_pods, on_gpus, remove_nodes

EMOJI = "chat-\U0001f600"
TOKEN = "hf_abcdefghijklmnop"
HANDED_ON = {"labels": {"cost-center": "42"}, "annotations": {"example.com/owner": "team-a"}}
WIDE = {"parallelism": {"tensor": 101, "nodes": 101}}
"""A replica of more pods than the 100 that a ModelDeployment may have."""


def alive(namespace: str) -> Object:
    resource = model("alive", namespace)
    resource["spec"]["model"]["aliases"] = [EMOJI]
    resource["metadata"] |= HANDED_ON
    return resource


@pytest.fixture(scope="module")
def namespace(release: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """With all of the resources: to wait for one of them is to wait for all."""
    name = "e2e-tenants"
    backend = model("any", name)["spec"]["backend"]
    with fresh_namespace(name, request.node):
        add_nodes("tenants-a")
        apply(
            alive(name),
            model("failed", name, backend={"type": "headwater", "image": "localhost/there-is-none:1"}),
            model("token", name, replicas=0, backend=backend | {"env": {"HF_TOKEN": TOKEN}}),
            model("flag", name, replicas=0, backend=backend | {"args": ["--por", "9"]}),
            on_gpus("later", name, "vllm"),
            on_gpus("group", name, "sglang", parallelism={"tensor": 2, "nodes": 2}) | {"metadata": {
                "name": "group", "namespace": name, **HANDED_ON}},
            on_gpus("wide", name, "sglang", replicas=0, **WIDE),
        )  # fmt: skip
        yield name
        remove_nodes("tenants-a")


def degraded(name: str, namespace: str, reason: str) -> str:
    """What it says, once it says so for that reason."""

    def told() -> str | None:
        found = condition(get("md", name, namespace), "Degraded")
        return str(found["message"]) if found.get("reason") == reason else None

    return str(eventually(f"md/{name} is Degraded: {reason}", told, timeout=150))


# Warned and refused


def test_a_token_that_all_can_read_is_warned_of_without_its_value(namespace: str) -> None:
    event = eventually_told(namespace, "PlainTextToken", of="token")
    assert event["type"] == "Warning"
    assert "spec.backend.env.HF_TOKEN" in event["message"] and TOKEN not in event["message"]


def test_a_flag_that_is_ours_is_refused_also_where_it_is_cut_short(namespace: str) -> None:
    assert '"--por", which is --port' in degraded("flag", namespace, "Unsupported")


@pytest.mark.timeout(300)
def test_a_typo_made_later_leaves_no_ready_that_is_of_an_earlier_spec(namespace: str) -> None:
    wait_ready("later", namespace)
    patch = json.dumps({"spec": {"template": {"spec": {"nodeSelektor": {"a": "b"}}}}})
    kubectl("patch", "md", "later", "-n", namespace, "--type=merge", "-p", patch)
    assert "nodeSelektor" in degraded("later", namespace, "Refused")
    resource = get("md", "later", namespace)
    ready = condition(resource, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Refused")
    assert resource is not None and ready["observedGeneration"] == resource["metadata"]["generation"]
    assert resource["status"]["readyReplicas"] == 1, "what runs goes on"


@pytest.mark.timeout(300)
def test_a_group_heals_while_its_spec_is_refused(namespace: str) -> None:
    wait_ready("group", namespace)
    before = uids("group", namespace)
    patch = json.dumps({"spec": {"template": {"spec": {"nodeSelektor": {"a": "b"}}}}})
    kubectl("patch", "md", "group", "-n", namespace, "--type=merge", "-p", patch)
    assert "nodeSelektor" in degraded("group", namespace, "Refused")
    lost = engine_pods("group", namespace)[0]["metadata"]["name"]
    kubectl("delete", "pod", lost, "-n", namespace, "--grace-period=0", "--force", "--wait=false")
    eventually("all of its pods are new", lambda: len(uids("group", namespace) - before) == len(before), timeout=120)
    eventually_told(namespace, "GroupRestarted", of="group")
    assert condition(get("md", "group", namespace), "Degraded")["reason"] == "Refused"


def uids(name: str, namespace: str) -> set[str]:
    """Of the pods that are there to stay."""
    pods = [each["metadata"] for each in engine_pods(name, namespace)]
    return {each["uid"] for each in pods if "deletionTimestamp" not in each}


# Handed on


@pytest.mark.parametrize(("name", "workload"), [("alive", "deployment"), ("group", "statefulset")])
def test_labels_and_annotations_are_handed_on_to_what_is_made(namespace: str, name: str, workload: str) -> None:
    selector = f"headwater.dev/deployment={name}"
    for kind in (workload, "service"):
        made = eventually(f"the {kind}", lambda kind=kind: find(kind, namespace, selector), timeout=60)
        for each in made:
            for part, handed in HANDED_ON.items():
                assert each["metadata"][part].items() >= handed.items(), f"{kind} {each['metadata']['name']}"


# Served


@pytest.mark.timeout(400)
def test_a_name_with_an_emoji_is_served(client: Client, namespace: str) -> None:
    wait_ready("alive", namespace)
    wait_routable("alive", namespace)
    assert client.ask(EMOJI, "Hello?")["status"] == 200


@pytest.mark.timeout(400)
def test_helm_test_asks_a_model_that_is_ready_and_none_that_has_failed(client: Client, namespace: str) -> None:
    wait_routable("alive", namespace, timeout=240)
    degraded("failed", namespace, "ImagePullFailed")
    said = run("helm", "test", RELEASE, "-n", SYSTEM, "--logs", "--timeout=120s", timeout=150)
    assert ", What is the capital of France?" in said
    assert not any(line.startswith(("failed", f"{namespace}/failed")) for line in said.splitlines()), said


# The ceiling


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"replicas": 101}, "spec.replicas"),
        ({"replicas": 51, "parallelism": {"tensor": 2, "nodes": 2}}, "spec.replicas"),
        (WIDE, "spec.parallelism.nodes"),
        ({"autoscaling": {"max": 101}}, "spec.autoscaling.max"),
        ({"autoscaling": {"max": 26}, "parallelism": {"tensor": 4, "nodes": 4}}, "spec.autoscaling.max"),
    ],
)
def test_more_pods_than_the_platform_allows_are_refused_at_once(namespace: str, spec: Object, field: str) -> None:
    with pytest.raises(CommandError, match=rf"{field}: .*must be at most 100.*operator\.maxReplicas"):
        apply(on_gpus("many", namespace, "sglang", **spec), dry_run=True)


@pytest.mark.parametrize(
    "spec", [{"replicas": 50, "parallelism": {"tensor": 2, "nodes": 2}}, {"autoscaling": {"min": 0, "max": 100}}]
)
def test_as_many_as_the_platform_allows_are_not_refused(namespace: str, spec: Object) -> None:
    apply(on_gpus("many", namespace, "sglang", **spec), dry_run=True)


def test_kubectl_scale_is_held_to_the_ceiling_too(namespace: str) -> None:
    with pytest.raises(CommandError, match=r"spec\.replicas: .*must be at most 100"):
        kubectl("scale", "md", "token", "-n", namespace, "--replicas=101")


def test_what_the_api_server_cannot_count_the_operator_caps(namespace: str) -> None:
    """A Scale does not say how many pods a replica has."""
    kubectl("scale", "md", "wide", "-n", namespace, "--replicas=1")
    told = degraded("wide", namespace, "ReplicasCapped")
    assert "spec.replicas: 1 of 101 pods each" in told and "there will be 0 at most" in told
    assert find("statefulsets", namespace, "headwater.dev/deployment=wide") == []
