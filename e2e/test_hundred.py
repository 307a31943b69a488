"""A hundred ModelDeployments on simulated nodes: they settle, cost little at rest, and survive a restart."""

import re
import time
from collections.abc import Iterator

import pytest

from e2e.conftest import metrics_of, operator_pods
from e2e.harness import SYSTEM, Object, apply, condition, eventually, find, kubectl
from e2e.simulation import add_nodes, on_gpus, remove_nodes

COUNT = 100
pytestmark = pytest.mark.alone  # it counts what the operator does
KINDS = ("md", "deployment", "service", "pdb", "networkpolicy")


@pytest.fixture(scope="module", autouse=True)
def nodes(release: None) -> Iterator[None]:
    add_nodes(*(f"simulated-{number:02}" for number in range(13)))
    yield
    remove_nodes()


@pytest.mark.timeout(900)
def test_a_hundred_settle_and_a_restart_of_the_operator_changes_nothing(namespace: str) -> None:
    began = time.monotonic()
    apply(*(on_gpus(f"model-{number:03}", namespace, "vllm") for number in range(COUNT)))
    eventually("all are ready", lambda: ready(namespace) == COUNT, timeout=400, every=2)
    settled = time.monotonic() - began
    before = cost()
    print(f"{COUNT} settle in {settled:.0f} s; the operator has used {before}")

    first = eventually("they are at rest", lambda: still(namespace), timeout=120, every=1)
    rest = cost()
    kubectl("rollout", "restart", "deployment/headwater-operator", "-n", SYSTEM)
    kubectl("rollout", "status", "deployment/headwater-operator", "-n", SYSTEM, "--timeout=120s", timeout=150)
    eventually("another operator has reconciled all", lambda: reconciled() >= COUNT, timeout=120, every=1)
    after = cost()
    print(f"at rest {rest}; after a restart {after}")
    changed = [(first[name], now) for name, now in written(namespace).items() if first[name] != now]
    assert not changed, f"a restart of the operator must change no object: {changed[0]}"
    writes = {name: count for name, count in after.calls.items() if re.search("apply|patch|create|delete", name)}
    assert not {name for name in writes if "leases" not in name}, f"nor write any: {writes}"


def ready(namespace: str) -> int:
    return sum(condition(resource, "Ready").get("status") == "True" for resource in find("md", namespace))


def written(namespace: str) -> dict[str, Object]:
    """All objects as the operator writes them. Kubernetes may write the status of its own kinds at any time."""
    found: list[Object] = [each for kind in KINDS for each in find(kind, namespace)]
    return {f"{each['kind']} {each['metadata']['name']}": _written(each) for each in found}


def _written(found: Object) -> Object:
    of_others = {"resourceVersion", "managedFields"}
    metadata = {name: value for name, value in found["metadata"].items() if name not in of_others}
    status = found.get("status") if found["kind"] == "ModelDeployment" else None
    return found | {"metadata": metadata, "status": status}


def still(namespace: str) -> dict[str, Object]:
    """All objects, once they have not changed for a few seconds."""
    first = written(namespace)
    time.sleep(5)
    return first if written(namespace) == first else {}


class Cost:
    """What the acting operator has used since it began."""

    def __init__(self, page: str) -> None:
        def value(name: str) -> float:
            found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
            return float(found[1]) if found else 0.0

        self.cpu = value("process_cpu_seconds_total")
        self.memory = value("process_resident_memory_bytes") / 2**20
        calls = re.findall(
            r'^headwater_operator_api_requests_total{resource="(\w+)",verb="(\w+)"} (\S+)$', page, re.MULTILINE
        )
        self.calls = {f"{verb} {resource}": int(float(count)) for resource, verb, count in calls}
        self.reconciled = sum(
            float(n) for n in re.findall(r"^headwater_operator_reconciles_total{.*} (\S+)$", page, re.MULTILINE)
        )

    def __str__(self) -> str:
        calls = f"{sum(self.calls.values())} API calls ({self.calls})"
        return f"{self.cpu:.1f} s CPU, {self.memory:.0f} MiB, {calls}, {self.reconciled:.0f} times reconciled"


def acting() -> str | None:
    """The metrics page of the operator that holds the Lease."""
    for pod in operator_pods():
        if "deletionTimestamp" in pod["metadata"] or condition(pod, "Ready").get("status") != "True":
            continue
        page = metrics_of(pod["metadata"]["name"], 8090)
        if "headwater_operator_leader 1.0" in page:
            return page
    return None


def cost() -> Cost:
    page = eventually("an operator acts", acting, timeout=60)
    assert page is not None
    return Cost(page)


def reconciled() -> float:
    page = acting()
    return Cost(page).reconciled if page else 0.0
