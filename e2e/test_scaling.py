"""Replicas follow the traffic: from one to four, to none when nobody asks, and back for whoever asks then."""

import pytest

from e2e.harness import Client, apply, eventually, eventually_told, find, get, wait_ready, wait_routable
from e2e.models import model

RULE = {
    "min": 0,
    "max": 4,
    "inFlightPerReplica": 4,
    "stableWindow": "10s",
    "panicWindow": "4s",
    "scaleDownDelay": "15s",
}


@pytest.mark.timeout(1800)
def test_scale_by_real_traffic_to_four_to_zero_and_back(client: Client, namespace: str) -> None:
    resource = model("elastic", namespace, autoscaling={**RULE, "min": 1}, drainTimeout="20s")
    apply(resource)
    wait_ready("elastic", namespace)
    wait_routable("elastic", namespace)
    assert replicas(namespace) == 1

    load = client.begin_load("elastic", 32, seconds=900, tokens=400)
    eventually("four replicas are wanted", lambda: replicas(namespace) == 4, timeout=300)
    eventually("four replicas serve", lambda: status(namespace).get("readyReplicas") == 4, timeout=600)
    report = load.stop()
    print("1 -> 4:", report)
    assert report["cut"] == report["refused"] == 0, report["problems"]

    apply(model("elastic", namespace, autoscaling=RULE, drainTimeout="20s"))
    eventually("no replica is wanted", lambda: replicas(namespace) == 0, timeout=300)
    eventually("scaled to zero", lambda: status(namespace).get("phase") == "ScaledToZero", timeout=300)
    eventually("no pod is left", lambda: not find("pods", namespace, "app.kubernetes.io/component=engine"), timeout=300)

    answer = client.ask("elastic", "Are you there?", timeout=180)
    assert answer["status"] == 200, "the request that wakes it is held and answered"
    assert replicas(namespace) == 1
    for words in ("to 4 replicas", "from 0 to 1 replicas"):
        print(eventually_told(namespace, "Scaled", words)["message"])


def replicas(namespace: str) -> int:
    workload = get("deployment", "elastic", namespace)
    assert workload is not None
    return int(workload["spec"]["replicas"])


def status(namespace: str) -> dict[str, object]:
    resource = get("md", "elastic", namespace)
    assert resource is not None
    return dict(resource.get("status") or {})
