"""A thousand ModelDeployments in one namespace, and over a hundred: nobody waits, nothing restarts, a resync is cheap.

Takes several minutes beside the cluster's own work, so only where HEADWATER_E2E_THOUSAND is set. By hand:
HEADWATER_E2E_THOUSAND=1 make e2e TESTS=e2e/test_thousand.py
"""

import os
import re
import time
from collections.abc import Iterator

import pytest

from e2e.conftest import operator_pods
from e2e.harness import Object, apply, condition, eventually, find, kubectl
from e2e.simulation import add_nodes, on_gpus, remove_nodes
from e2e.test_hundred import acting, cost

COUNT = 1000
NODES = 126
"""Of eight GPUs each."""
RESYNC = 300
"""Seconds, as the operator's default."""

pytestmark = pytest.mark.skipif(not os.environ.get("HEADWATER_E2E_THOUSAND"), reason="takes several minutes")


@pytest.fixture(scope="module", autouse=True)
def nodes(release: None) -> Iterator[None]:
    add_nodes(*(f"simulated-{number:03}" for number in range(NODES)))
    yield
    remove_nodes()


@pytest.fixture
def namespaces(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    names = [f"e2e-thousand-{request.param}-{number:03}" for number in range(request.param)]
    apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names))
    yield names
    kubectl("delete", "namespace", *names, "--wait=false")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("namespaces", [1, 100], indirect=True)
def test_a_thousand_settle_and_the_loop_is_never_held_up_for_long(namespaces: list[str]) -> None:
    before = restarts()
    began = time.monotonic()
    resources = [on_gpus(f"model-{n:04}", namespaces[n % len(namespaces)], "vllm") for n in range(COUNT)]
    for start in range(0, COUNT, 100):
        apply(*resources[start : start + 100])
    eventually("all are ready", lambda: ready(namespaces) == COUNT, timeout=1500, every=5)
    print(f"{COUNT} over {len(namespaces)} namespaces settle in {time.monotonic() - began:.0f} s; {cost()}")
    print(f"the loop was held up for {lag() * 1000:.0f} ms at most")
    time.sleep(30)  # What Kubernetes itself still writes.
    lag()
    rest = cost()
    time.sleep(RESYNC + 30)
    resync, held_up = cost(), lag()
    print(f"a resync at rest took {resync.cpu - rest.cpu:.1f} s CPU; the loop was held up for {held_up * 1000:.0f} ms")
    assert resync.cpu - rest.cpu < 2
    assert held_up < 0.1
    assert restarts() == before


def ready(namespaces: list[str]) -> int:
    found: list[Object] = [each for name in namespaces for each in find("md", name)]
    return sum(condition(each, "Ready").get("status") == "True" for each in found)


def lag() -> float:
    """Seconds, of the operator that acts, since this was last asked for."""
    found = re.search(r"^headwater_operator_loop_lag_seconds (\S+)$", acting() or "", re.MULTILINE)
    assert found, "nobody acts"
    return float(found[1])


def restarts() -> int:
    return sum(each["restartCount"] for pod in operator_pods() for each in pod["status"].get("containerStatuses") or [])
