"""A change of the spec under load: not one request is lost and not one stream is cut, whatever else is restarted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from e2e.conftest import fresh_namespace, operator_pods
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

pytestmark = pytest.mark.alone  # it restarts the operator and the routers, under as much load as there is room for
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


@dataclass(slots=True)
class Rolling:
    """Two replicas that all tests here roll, one after the other."""

    namespace: str
    revision: int = 1

    def resource(self) -> Object:
        resource = model("rolling", self.namespace, replicas=2)
        resource["spec"]["backend"]["env"] = {"E2E_REVISION": str(self.revision)}
        return resource


@pytest.fixture(scope="module")
def rolling(client: Client, request: pytest.FixtureRequest) -> Iterator[Rolling]:
    with fresh_namespace("e2e-rollout", request.node):
        yield Rolling("e2e-rollout")


@pytest.fixture
def serving(rolling: Rolling) -> Rolling:
    apply(rolling.resource())
    wait_ready("rolling", rolling.namespace)
    wait_routable("rolling", rolling.namespace)
    eventually("two pods are all there are", lambda: len(names(rolling.namespace)) == 2, timeout=120)
    return rolling


@pytest.mark.timeout(900)
@pytest.mark.parametrize("disturb", [nothing, kill_the_operator, roll_the_routers, delete_a_pod])
def test_a_rollout_under_load_loses_nothing(client: Client, serving: Rolling, disturb: Callable[[str], None]) -> None:
    namespace = serving.namespace
    before = names(namespace)
    load = client.begin_load("rolling", STREAMS, seconds=600)
    eventually("requests at both pods", lambda: in_flight(before) == before, timeout=60)

    serving.revision += 1
    apply(serving.resource())
    disturb(namespace)
    wait_ready("rolling", namespace, timeout=400)
    eventually("the old pods are gone", lambda: not before & names(namespace), timeout=200)
    eventually("requests at the new pods", lambda: in_flight(names(namespace)) == names(namespace), timeout=60)

    report = load.stop()
    print(report)
    assert report["cut"] == report["refused"] == 0, report["problems"]
    assert report["whole"] == report["requests"] > STREAMS
    assert before < set(report["pods"]), "the old pods answered, and then new ones"


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
def test_a_failed_revision_stops_and_a_revert_keeps_the_old_pods(serving: Rolling) -> None:
    namespace = serving.namespace
    before = names(namespace)
    broken = serving.resource()
    broken["spec"]["backend"]["args"] = ["--no-such-flag"]
    apply(broken)
    eventually(
        "the failure is in the status",
        lambda: condition(get("md", "rolling", namespace), "Degraded").get("reason") == "CrashLoop",
        timeout=180,
    )
    resource = get("md", "rolling", namespace)
    assert condition(resource, "Ready")["status"] == "False"
    assert condition(resource, "ModelLoaded")["status"] == "True"
    ready = {
        pod["metadata"]["name"]
        for pod in find("pods", namespace, ENGINE)
        if condition(pod, "Ready")["status"] == "True"
    }
    assert ready == before, "all of the old ones serve on"

    apply(serving.resource())
    wait_ready("rolling", namespace)
    assert before <= names(namespace), "a revert must not restart what still runs"
