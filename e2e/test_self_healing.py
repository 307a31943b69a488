"""What is not as it should be is put right, and what is not ours is left alone."""

from collections.abc import Iterator

import pytest
import yaml

from e2e.harness import SYSTEM, apply, condition, eventually, eventually_told, get, kubectl, wait_ready
from e2e.simulation import add_nodes, engine_pods, on_gpus, remove_nodes


@pytest.fixture(scope="module", autouse=True)
def nodes(release: None) -> Iterator[None]:
    add_nodes("healing-a", "healing-b")
    yield
    remove_nodes("healing-a", "healing-b")


@pytest.mark.timeout(300)
def test_drift_is_put_right_and_a_deleted_child_comes_back(namespace: str) -> None:
    apply(on_gpus("steady", namespace, "vllm", replicas=2))
    wait_ready("steady", namespace)
    uid = get("service", "steady-engine", namespace)["metadata"]["uid"]  # type: ignore[index]

    kubectl("delete", "service", "steady-engine", "-n", namespace)
    back = eventually("the Service is back", lambda: get("service", "steady-engine", namespace), timeout=30)
    assert back["metadata"]["uid"] != uid

    kubectl("scale", "deployment", "steady", "-n", namespace, "--replicas=5")
    eventually("the replicas are two", lambda: replicas("steady", namespace) == 2, timeout=30)
    kubectl("set", "image", "deployment/steady", "engine=other:1", "-n", namespace)
    eventually("the image is ours", lambda: "other" not in image_of("steady", namespace), timeout=30)

    kubectl("delete", "deployment", "steady", "-n", namespace, "--cascade=foreground", "--timeout=60s")
    eventually("the Deployment is back", lambda: get("deployment", "steady", namespace), timeout=60)
    wait_ready("steady", namespace)


@pytest.mark.timeout(300)
def test_the_scale_subresource_drives_the_replicas(namespace: str) -> None:
    apply(on_gpus("scaled", namespace, "vllm", replicas=1))
    wait_ready("scaled", namespace)
    kubectl("scale", "md", "scaled", "-n", namespace, "--replicas=3")
    eventually("three replicas", lambda: replicas("scaled", namespace) == 3, timeout=30)
    wait_ready("scaled", namespace)
    scale = kubectl(
        "get", "--raw", f"/apis/headwater.dev/v1alpha1/namespaces/{namespace}/modeldeployments/scaled/scale"
    )
    assert '"selector":"headwater.dev/deployment=scaled' in scale


@pytest.mark.timeout(300)
def test_an_object_of_somebody_else_is_neither_touched_nor_deleted(namespace: str) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken-engine", "namespace": namespace},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}},
    }
    apply(theirs)
    before = get("service", "taken-engine", namespace)
    apply(on_gpus("taken", namespace, "vllm"))
    eventually(
        "the status says so",
        lambda: condition(get("md", "taken", namespace), "Degraded").get("reason") == "NameTaken",
        timeout=60,
    )
    message = condition(get("md", "taken", namespace), "Degraded")["message"]
    assert "taken-engine" in message
    assert eventually_told(namespace, "NameTaken")["type"] == "Warning"
    kubectl("delete", "md", "taken", "-n", namespace, "--timeout=30s")
    after = get("service", "taken-engine", namespace)
    assert before is not None and after is not None
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_deletion_needs_no_operator_and_leaves_nothing(namespace: str) -> None:
    apply(on_gpus("gone", namespace, "vllm", replicas=2))
    wait_ready("gone", namespace)
    kubectl("scale", "deployment/headwater-operator", "-n", SYSTEM, "--replicas=0")
    try:
        kubectl("delete", "md", "gone", "-n", namespace, "--timeout=30s")
        eventually("nothing is left", lambda: not leftovers(namespace), timeout=90)
    finally:
        kubectl("scale", "deployment/headwater-operator", "-n", SYSTEM, "--replicas=2")
        kubectl("rollout", "status", "deployment/headwater-operator", "-n", SYSTEM, "--timeout=90s")


@pytest.mark.timeout(300)
def test_replacing_the_whole_resource_restarts_no_pod(namespace: str) -> None:
    resource = on_gpus("replaced", namespace, "vllm")
    apply(resource)
    wait_ready("replaced", namespace)
    before = [pod["metadata"]["uid"] for pod in engine_pods("replaced", namespace)]
    generation = get("deployment", "replaced", namespace)["metadata"]["generation"]  # type: ignore[index]
    kubectl("replace", "-f", "-", input=yaml.safe_dump(resource))
    wait_ready("replaced", namespace)
    assert [pod["metadata"]["uid"] for pod in engine_pods("replaced", namespace)] == before
    assert get("deployment", "replaced", namespace)["metadata"]["generation"] == generation  # type: ignore[index]


def leftovers(namespace: str) -> list[str]:
    kinds = "deployment,statefulset,service,pod,job,pvc,pdb,endpointslice"
    return kubectl("get", kinds, "-n", namespace, "-l", "app.kubernetes.io/managed-by=headwater", "-o", "name").split()


def replicas(name: str, namespace: str) -> int:
    workload = get("deployment", name, namespace)
    return int(workload["spec"]["replicas"]) if workload else -1


def image_of(name: str, namespace: str) -> str:
    workload = get("deployment", name, namespace)
    return str(workload["spec"]["template"]["spec"]["containers"][0]["image"]) if workload else "other"
