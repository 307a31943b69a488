"""Weights fetched by the operator's Job from a store whose line breaks: Ready, verified, nothing left over."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import ENGINE_IMAGE
from e2e.harness import Client, Object, apply, condition, eventually, find, get, kubectl, wait_ready, wait_routable
from e2e.models import model, template
from e2e.simulation import add_volumes, engine_pods

pytestmark = pytest.mark.alone  # a claim takes any volume that fits, also one of another test
VOLUME, COPY = "e2e-weights", "e2e-weights-copy"
RATE = 5.0
"""MiB a second: the operator asks every fifteen seconds how far a fetch is."""


@pytest.fixture
def store(namespace: str) -> Iterator[str]:
    """The address of a hub in the cluster, and a volume for what is fetched from it."""
    kubectl("delete", "pv", VOLUME, "--ignore-not-found", "--wait=true")
    add_volumes([VOLUME])
    yield start_store(namespace, RATE)
    kubectl("delete", "pv", VOLUME, COPY, "--ignore-not-found", "--wait=false")


def start_store(namespace: str, rate: float | None = None) -> str:
    """Its address. `rate`: MiB a second."""
    apply(*store_objects(namespace, [] if rate is None else [str(rate)]))
    eventually("the store", lambda: condition(get("pod", "store", namespace), "Ready").get("status") == "True", 60)
    return f"http://store.{namespace}.svc:8000"


def store_objects(namespace: str, arguments: list[str]) -> list[Object]:
    script = (Path(__file__).parent / "weights_store.py").read_text()
    mounted = template().get("spec", {"volumes": [], "containers": [{"volumeMounts": []}]})
    container = {
        "name": "store",
        "image": ENGINE_IMAGE,
        "command": ["python3", "/store/weights_store.py", "/volume", *arguments],
        "securityContext": {"runAsUser": 0},  # it makes the volume writable for the Job's user
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
        "volumeMounts": [
            *mounted["containers"][0]["volumeMounts"],
            {"name": "store", "mountPath": "/store"},
            {"name": "volume", "mountPath": "/volume"},
        ],
    }
    path = {"path": f"/var/tmp/headwater-e2e/{VOLUME}", "type": "DirectoryOrCreate"}
    volumes = [
        *mounted["volumes"],
        {"name": "store", "configMap": {"name": "store"}},
        {"name": "volume", "hostPath": path},
    ]
    labels = {"app": "store"}
    metadata = {"name": "store", "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"weights_store.py": script}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"port": 8000}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata | {"labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "containers": [container],
                "volumes": volumes,
            },
        },
    ]


@pytest.mark.timeout(600)
def test_a_slow_store_that_breaks_twice_is_told_of_verified_and_nothing_is_left_over(
    client: Client, namespace: str, store: str
) -> None:
    resource = model("fetched", namespace, source="hf://lab/smollm2", weights={"size": "1Gi", "keep": False})
    resource["spec"]["backend"]["env"] = {"HF_ENDPOINT": store}
    apply(resource)
    told = eventually("it is told how far the fetch is", lambda: progress("fetched", namespace), timeout=180)
    assert 0 <= told["percent"] <= 100
    assert told["bytes"] > 2**26
    ready = wait_ready("fetched", namespace, 300)
    assert "progress" not in ready["status"]["weights"]
    weights = ready["status"]["weights"]
    assert weights["phase"] == "Filled"
    assert re.fullmatch(r"2 files, 0\.1 GiB, verified: 1 by git blob id, 1 by sha256", weights["message"]), weights

    asked = kubectl("logs", "store", "-n", namespace)
    assert asked.count("broke after") == 2, asked
    broken = [int(start) + int(cut) for start, cut in re.findall(r"bytes=(\d+)-\d* broke after (\d+)", asked)]
    assert all(f"bytes={byte}-" in asked for byte in broken), "it went on from the byte"

    there = kubectl("exec", "store", "-n", namespace, "--", "ls", "-A", "/volume").split()
    (folder,) = there
    (pod,) = engine_pods("fetched", namespace)
    verify = ("headwater", "fetch", "--verify", f"/models/{folder}")
    assert "2 files" in kubectl("exec", pod["metadata"]["name"], "-n", namespace, "-c", "engine", "--", *verify)

    wait_routable("fetched", namespace)
    assert client.ask("fetched", "Hello!")["status"] == 200


def progress(name: str, namespace: str) -> Object | None:
    status = (get("md", name, namespace) or {}).get("status") or {}
    return (status.get("weights") or {}).get("progress")


@pytest.mark.timeout(400)
def test_replicas_read_a_copy_of_a_volume_that_only_one_node_can_write(namespace: str, release: None) -> None:
    """Nobody copies volumes here: the one that stands for the copy is the same folder, as what can only be read."""
    kubectl("delete", "pv", VOLUME, COPY, "--ignore-not-found", "--wait=true")
    add_volumes([VOLUME], modes=["ReadWriteOnce"])
    add_volumes([COPY], modes=["ReadOnlyMany"], folder=VOLUME)
    hub = start_store(namespace)
    try:
        weights = {"size": "1Gi", "accessMode": "ReadOnlyMany", "keep": False}
        resource = model("read", namespace, source="hf://lab/smollm2", weights=weights, replicas=2)
        resource["spec"]["backend"]["env"] = {"HF_ENDPOINT": hub}
        apply(resource)
        ready = wait_ready("read", namespace, 300)
        claim = ready["status"]["weights"]["claim"]
        copied = get("pvc", f"{claim}-copy", namespace)
        assert copied is not None
        assert copied["spec"]["accessModes"] == ["ReadOnlyMany"]
        assert copied["spec"]["dataSource"]["name"] == claim
        pods = engine_pods("read", namespace)
        assert len(pods) == 2
        for pod in pods:
            (mounted,) = (each["persistentVolumeClaim"] for each in pod["spec"]["volumes"] if each["name"] == "weights")
            assert mounted == {"claimName": f"{claim}-copy", "readOnly": True}
        eventually("the Job is gone, whose pod would hold the volume", lambda: not find("job", namespace), timeout=30)
        kubectl("delete", "md", "read", "-n", namespace, "--timeout=60s")
        eventually("volume and copy are gone", lambda: not find("pvc", namespace), timeout=90)
    finally:
        kubectl("delete", "pv", VOLUME, COPY, "--ignore-not-found", "--wait=false")
