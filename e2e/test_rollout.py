"""A change of the spec under load: not one request is lost and not one stream is cut, whatever else is restarted."""

from collections.abc import Callable, Iterator

import pytest

from e2e.conftest import operator_pods
from e2e.harness import (
    SYSTEM,
    Client,
    Object,
    apply,
    condition,
    eventually,
    find,
    get,
    kubectl,
    wait_ready,
    wait_routable,
)
from e2e.models import model

STREAMS = 32
ENGINE = "app.kubernetes.io/component=engine"


def kill_the_operator(namespace: str) -> None:
    for pod in operator_pods():
        kubectl("delete", "pod", pod["metadata"]["name"], "-n", SYSTEM, "--grace-period=0", "--force")


def roll_the_routers(namespace: str) -> None:
    kubectl("rollout", "restart", "deployment/headwater-router", "-n", SYSTEM)
    kubectl("rollout", "status", "deployment/headwater-router", "-n", SYSTEM, "--timeout=180s", timeout=200)


def delete_a_pod(namespace: str) -> None:
    ready = [pod for pod in find("pods", namespace, ENGINE) if condition(pod, "Ready").get("status") == "True"]
    kubectl("delete", "pod", ready[0]["metadata"]["name"], "-n", namespace, "--wait=false")


def nothing(namespace: str) -> None:
    pass


@pytest.fixture
def serving(client: Client, namespace: str) -> Iterator[str]:
    apply(model("rolling", namespace, replicas=2))
    wait_ready("rolling", namespace)
    wait_routable("rolling", namespace)
    yield namespace


@pytest.mark.timeout(900)
@pytest.mark.parametrize("disturb", [nothing, kill_the_operator, roll_the_routers, delete_a_pod])
def test_a_rollout_under_load_loses_nothing(client: Client, serving: str, disturb: Callable[[str], None]) -> None:
    before = {pod["metadata"]["name"] for pod in find("pods", serving, ENGINE)}
    load = client.begin_load("rolling", STREAMS, seconds=600)
    eventually("requests at both pods", lambda: in_flight(before) == before, timeout=60)

    apply(model("rolling", serving, replicas=2, backend=changed(model("rolling", serving))))
    disturb(serving)
    wait_ready("rolling", serving, timeout=400)
    eventually("the old pods are gone", lambda: not before & names(serving), timeout=200)
    eventually("requests at the new pods", lambda: in_flight(names(serving)) == names(serving), timeout=60)

    report = load.stop()
    print(report)
    assert report["cut"] == report["refused"] == 0, report["problems"]
    assert report["whole"] == report["requests"] > STREAMS
    assert before < set(report["pods"]), "the old pods answered, and then new ones"


def changed(resource: Object) -> Object:
    backend: Object = resource["spec"]["backend"]
    return backend | {"env": {"E2E_REVISION": "2"}}


def names(namespace: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in find("pods", namespace, ENGINE)}


def in_flight(pods: set[str]) -> set[str]:
    """Those of the pods that have requests, as the routers say."""
    found = set()
    for router in find("pods", SYSTEM, "app.kubernetes.io/component=router"):
        if condition(router, "Ready").get("status") == "True":
            page = kubectl(
                "get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{router['metadata']['name']}:9090/proxy/metrics"
            )
            lines = [line for line in page.splitlines() if line.startswith("headwater_router_endpoint_in_flight{")]
            found |= {pod for pod in pods for line in lines if f'"{pod}"' in line and not line.endswith(" 0.0")}
    return found


@pytest.mark.timeout(600)
def test_a_failed_revision_stops_and_a_revert_keeps_the_old_pods(serving: str) -> None:
    before = names(serving)
    broken = model("rolling", serving, replicas=2)
    broken["spec"]["backend"]["args"] = ["--no-such-flag"]
    apply(broken)
    eventually(
        "the failure is in the status",
        lambda: condition(get("md", "rolling", serving), "Degraded").get("reason") == "CrashLoop",
        timeout=180,
    )
    resource = get("md", "rolling", serving)
    assert condition(resource, "Ready")["status"] == "False"
    assert condition(resource, "ModelLoaded")["status"] == "True"
    ready = {
        pod["metadata"]["name"] for pod in find("pods", serving, ENGINE) if condition(pod, "Ready")["status"] == "True"
    }
    assert ready == before, "all of the old ones serve on"

    apply(model("rolling", serving, replicas=2))
    wait_ready("rolling", serving)
    assert before <= names(serving), "a revert must not restart what still runs"
