"""Every backend on nodes with GPUs that are simulated: what is scheduled where, with which command and volumes."""

from collections.abc import Iterator

import pytest

from e2e.harness import Object, apply, eventually, eventually_told, find, get, kubectl, wait_ready
from e2e.simulation import add_nodes, add_volumes, engine_pods, on_gpus, remove_nodes, remove_volumes

NODES = ("simulated-a", "simulated-b", "simulated-c")


@pytest.fixture(scope="module", autouse=True)
def nodes(release: None) -> Iterator[None]:
    add_nodes(*NODES)
    add_volumes([f"e2e-volume-{number}" for number in range(4)])
    yield
    remove_nodes(*NODES, "simulated-d")
    remove_volumes()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("vllm", ["vllm", "serve", "--tensor-parallel-size", "8"]),
        ("sglang", ["sglang.launch_server", "--tp-size", "8"]),
        ("tgi", ["text-generation-launcher", "--num-shard", "8"]),
    ],
)
def test_eight_gpus_are_one_pod(namespace: str, backend: str, words: list[str]) -> None:
    apply(on_gpus("wide", namespace, backend, parallelism={"tensor": 8}))
    wait_ready("wide", namespace)
    pods = engine_pods("wide", namespace)
    assert len(pods) == 1
    container = pods[0]["spec"]["containers"][0]
    assert [word for word in words if not any(word in each for each in container["command"])] == []
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pods[0]["spec"]["nodeName"] in NODES
    volumes = {volume["name"]: volume for volume in pods[0]["spec"]["volumes"]}
    shared = next(mount for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    assert volumes[shared["name"]]["emptyDir"]["medium"] == "Memory"
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 3600, "as long as loadTimeout"
    assert container["livenessProbe"] and container["readinessProbe"]
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] < pods[0]["spec"]["terminationGracePeriodSeconds"]


KEPT: dict[str, tuple[str, str]] = {
    "amd": ("amd.com/gpu", "amd.com/gpu"),
    "mig": ("nvidia.com/mig-1g.10gb", "nvidia.com/gpu"),
    "gaudi": ("habana.ai/gaudi", "habana.ai/gaudi"),
}
"""A device, and the taint of the nodes that have it."""


@pytest.mark.timeout(300)
def test_pods_go_to_nodes_that_are_kept_for_their_devices(namespace: str) -> None:
    for name, (device, taint) in KEPT.items():
        add_nodes(f"kept-{name}", device=device, kept_for=taint)
        resource = on_gpus(name, namespace, "vllm", resources={"limits": {device: "1"}})
        resource["spec"]["backend"]["image"] = "vllm-of-the-vendor:1"
        apply(resource)
    for name, (device, _) in KEPT.items():
        wait_ready(name, namespace)
        (pod,) = engine_pods(name, namespace)
        assert pod["spec"]["nodeName"] == f"kept-{name}"
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        assert {each for each in limits if "/" in each} == {device}, "no other GPU on top"
    remove_nodes(*(f"kept-{name}" for name in KEPT))


@pytest.mark.timeout(300)
def test_transformers_needs_no_gpu(namespace: str) -> None:
    resource = on_gpus("any", namespace, "transformers")
    resource["spec"]["model"]["aliases"] = ["lab/model"]
    apply(resource)
    wait_ready("any", namespace)
    container = engine_pods("any", namespace)[0]["spec"]["containers"][0]
    assert container["command"][:2] == ["transformers", "serve"]
    assert "nvidia.com/gpu" not in container["resources"].get("limits", {})


@pytest.mark.timeout(300)
def test_tensorrt_llm_builds_its_engine_once_and_keeps_it(namespace: str) -> None:
    resource = on_gpus("peak", namespace, "tensorrt-llm", replicas=2, parallelism={"tensor": 2})
    resource["spec"]["backend"]["args"] = ["--backend", "tensorrt"]
    apply(resource)
    wait_ready("peak", namespace)
    jobs = find("jobs", namespace)
    assert len(jobs) == 1
    claim = jobs[0]["metadata"]["name"]
    for pod in engine_pods("peak", namespace):
        claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["spec"]["volumes"]]
        assert claim in claims
    built = jobs[0]["metadata"]["uid"]
    apply(resource | {"spec": resource["spec"] | {"replicas": 3}})
    wait_ready("peak", namespace)
    assert [job["metadata"]["uid"] for job in find("jobs", namespace)] == [built]


@pytest.mark.timeout(300)
def test_weights_are_fetched_by_one_job_for_all_and_kept(namespace: str) -> None:
    weights = {"cached": True, "size": "100Gi"}
    apply(*(on_gpus(name, namespace, "vllm", replicas=2, weights=weights) for name in ("one", "other")))
    wait_ready("one", namespace)
    wait_ready("other", namespace)
    claims = find("pvc", namespace)
    assert len(claims) == 1
    assert len(find("jobs", namespace)) == 1
    mounted = {
        volume["persistentVolumeClaim"]["claimName"]
        for name in ("one", "other")
        for pod in engine_pods(name, namespace)
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert mounted == {claims[0]["metadata"]["name"]}
    for name in ("one", "other"):
        nodes = {pod["spec"]["nodeName"] for pod in engine_pods(name, namespace)}
        assert len(nodes) == 1, "the volume is ReadWriteOnce"
    assert not find("pvc", namespace, "headwater.dev/unused")
    kubectl("delete", "md", "one", "other", "-n", namespace, "--timeout=60s")
    eventually("the pods are gone", lambda: not engine_pods("one", namespace) and not engine_pods("other", namespace))
    assert [claim["metadata"]["uid"] for claim in find("pvc", namespace)] == [claims[0]["metadata"]["uid"]]
    eventually("it is on the list", lambda: find("pvc", namespace, "headwater.dev/unused"), timeout=60)


@pytest.mark.timeout(300)
def test_what_is_half_fetched_goes_with_its_last_user_and_had_the_labels_that_policies_demand(namespace: str) -> None:
    resource = on_gpus("early", namespace, "vllm", weights={"cached": True, "size": "1Gi"})
    resource["metadata"]["labels"] = {"cost-center": "42", "team": "llm"}
    resource["spec"]["template"] = {"spec": {"nodeSelector": {"there-is": "none"}}}
    apply(resource)
    for kind in ("pvc", "job"):
        (made,) = eventually(f"the {kind}", lambda kind=kind: find(kind, namespace), timeout=60)
        assert made["metadata"]["labels"]["cost-center"] == "42" and "team" not in made["metadata"]["labels"]
    (pod,) = eventually("the Job's pod", lambda: find("pods", namespace), timeout=60)
    assert pod["metadata"]["labels"]["cost-center"] == "42"
    assert any(each["key"] == "nvidia.com/gpu" for each in pod["spec"]["tolerations"]), "it may go where engines can"
    kubectl("delete", "md", "early", "-n", namespace, "--timeout=60s")
    eventually("nothing is left", lambda: not find("pvc", namespace) and not find("jobs", namespace), timeout=120)


@pytest.fixture
def group(namespace: str) -> list[Object]:
    apply(on_gpus("large", namespace, "vllm", parallelism={"tensor": 16, "nodes": 2}))
    wait_ready("large", namespace)
    return engine_pods("large", namespace)


@pytest.mark.timeout(400)
def test_two_nodes_are_a_group_that_restarts_together_when_one_is_lost(namespace: str, group: list[Object]) -> None:
    assert len(group) == 2
    assert {pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in group} == {"8"}
    hosts = {pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"]: pod["spec"]["nodeName"] for pod in group}
    assert len(set(hosts.values())) == 2
    service = get("service", "large-engine", namespace)
    assert service is not None
    assert service["spec"]["selector"]["apps.kubernetes.io/pod-index"] == "0", "only rank 0 gets requests"
    headless = get("service", "large-workers", namespace)
    assert headless is not None
    assert headless["spec"]["clusterIP"] == "None"

    before = {pod["metadata"]["uid"] for pod in group}
    kubectl("delete", "node", hosts["1"])

    def both_are_new() -> bool:
        pods = engine_pods("large", namespace)
        uids = {pod["metadata"]["uid"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}
        return len(uids) == 2 and not uids & before

    eventually("both pods are new ones", both_are_new, timeout=180)
    wait_ready("large", namespace)
    eventually_told(namespace, "GroupRestarted")


@pytest.mark.timeout(300)
def test_a_rollout_without_room_for_a_surge_replaces_instead(namespace: str) -> None:
    resource = on_gpus("tight", namespace, "vllm", parallelism={"tensor": 8}, replicas=3)
    add_nodes("simulated-d")  # in place of the one that was lost
    apply(resource)
    wait_ready("tight", namespace)
    changed = resource | {"spec": resource["spec"] | {"context": {"maxTokens": 2048}}}
    apply(changed)
    eventually_told(namespace, "NoRoomForSurge")
    wait_ready("tight", namespace)
