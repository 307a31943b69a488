"""A thousand ModelDeployments in one namespace, and over a hundred: nobody waits, nothing restarts, a resync is cheap.

Takes several minutes beside the cluster's own work, so only where HEADWATER_E2E_THOUSAND is set. By hand:
HEADWATER_E2E_THOUSAND=1 make e2e TESTS=e2e/test_thousand.py
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Self

import pytest

from e2e.conftest import install, operator_pods
from e2e.harness import Object, apply, condition, eventually, find, kubectl
from e2e.simulation import add_nodes, on_gpus, remove_nodes
from e2e.test_hundred import Cost, acting
from headwater.lag import WINDOW

COUNT = 1000
NODES = 126
"""Of eight GPUs each."""
RESYNC = 120
"""Seconds between two; the operator's default is 300, and they cost as much."""
LOOK = 15
"""Seconds between two looks at what it has used. A look costs it a page of some thousand lines."""
ALLOWED = 0.1
"""Seconds that the loop may be held up."""

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not os.environ.get("HEADWATER_E2E_THOUSAND"), reason="takes several minutes"),
]


@pytest.fixture(scope="module", autouse=True)
def nodes(release: None) -> Iterator[None]:
    # As it is installed by everybody: the other tests have it all a little quicker.
    install(
        "--set",
        "operator.settings.gateway_interval=2",
        "--set",
        "operator.settings.lease_seconds=15",
        "--set",
        f"operator.settings.resync_interval={RESYNC}",
        # Lag is also the time without a CPU. The API server is on the same two cores here, and takes what it gets.
        "--set",
        "operator.resources.requests.cpu=500m",
    )
    add_nodes(*(f"simulated-{number:03}" for number in range(NODES)))
    yield
    remove_nodes()
    install()


@pytest.fixture
def namespaces(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    names = [f"e2e-thousand-{request.param}-{number:03}" for number in range(request.param)]
    apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names))
    yield names
    # The next thousand are measured by themselves.
    kubectl("delete", "namespace", *names, "--timeout=900s", timeout=960)


@dataclass(frozen=True, slots=True)
class Look:
    """What the operator that acts has used by then."""

    at: float
    cpu: float
    reconciled: float
    lag: float
    """Seconds, the longest of the last minute; as the next one."""
    computing: float


class Looking(threading.Thread):
    """Looks again and again while inside, whatever else takes its time meanwhile."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.looks: list[Look] = []
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.looks.append(look())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self.looks.append(look())

    def run(self) -> None:
        while not self._over.wait(LOOK):
            self.looks.append(look())

    def held_up(self) -> tuple[float, float]:
        """Seconds, the longest from the first look to the last: lag, and what was computed at once."""
        unseen = max(other.at - one.at for one, other in pairwise(self.looks))
        assert unseen < WINDOW, f"its lag was not read for {unseen:.0f} s, and it tells that of {WINDOW:g} s"
        lag, computing = (max(getattr(each, name) for each in self.looks[1:]) for name in ("lag", "computing"))
        print(f"the loop was held up for {lag * 1000:.0f} ms at most, and computed for {computing * 1000:.0f} ms")
        return lag, computing


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("namespaces", [1, 100], indirect=True)
def test_a_thousand_settle_and_the_loop_is_never_held_up_for_long(namespaces: list[str]) -> None:
    before = restarts()
    time.sleep(WINDOW)  # The lag that it tells is that of a minute: here no longer that of its own start.
    began = time.monotonic()
    resources = [on_gpus(f"model-{n:04}", namespaces[n % len(namespaces)], "vllm") for n in range(COUNT)]
    with Looking() as settling:
        for start in range(0, COUNT, 100):
            apply(*resources[start : start + 100])
        eventually("all are ready", lambda: ready(namespaces) == COUNT, timeout=1500, every=5)
        settled = time.monotonic() - began
    print(f"{COUNT} over {len(namespaces)} namespaces settle in {settled:.0f} s; {Cost(page())}")
    _, busiest = settling.held_up()
    time.sleep(WINDOW)  # What Kubernetes itself still writes; and the lag from here on is that at rest.

    with Looking() as resting:
        time.sleep(RESYNC + 3 * LOOK)
    resyncs, at_rest = cost_of_resyncs(resting.looks)
    costs = ", ".join(f"{cost:.1f}" for cost in resyncs)
    print(f"a resync took {costs} s CPU, rest {at_rest * 60:.2f} s a minute, {spent(resting.looks)}")
    longest, _ = resting.held_up()
    print(f"both operators restarted {restarts() - before} times")
    # While they settle, the API server on the same two cores takes what it gets: lag is time without a CPU, too.
    assert busiest < ALLOWED
    assert max(resyncs) < 2
    assert longest < ALLOWED
    assert restarts() == before


def cost_of_resyncs(looks: list[Look]) -> tuple[list[float], float]:
    """CPU seconds of each that was, beyond what passes at rest, and of a second at rest."""
    steps = list(pairwise(looks))
    # One or another is reconciled at any time, as the figures of its routers change.
    busy = [number for number, (one, other) in enumerate(steps) if other.reconciled > one.reconciled + COUNT / 10]
    # It lists before it reconciles, and frees memory after. The first may have begun before the first look.
    begun = [number for number in busy if number and number - 1 not in busy]
    assert begun, "there was no resync"
    rest = median((b.cpu - a.cpu) / (b.at - a.at) for a, b in steps)
    extra = [b.cpu - a.cpu - rest * (b.at - a.at) for a, b in steps]
    return [sum(extra[number - 1 : number + 3]) for number in begun], rest


def spent(looks: list[Look]) -> str:
    return f"{looks[-1].cpu - looks[0].cpu:.1f} s in {looks[-1].at - looks[0].at:.0f} s in all"


def ready(namespaces: list[str]) -> int:
    found: list[Object] = [each for name in namespaces for each in find("md", name)]
    return sum(condition(each, "Ready").get("status") == "True" for each in found)


def page() -> str:
    found = eventually("an operator acts", acting, timeout=60)
    assert found is not None
    return found


def look() -> Look:
    told = page()
    found = dict(re.findall(r"^headwater_operator_loop_(lag|computing)_seconds (\S+)$", told, re.MULTILINE))
    cost = Cost(told)
    return Look(time.monotonic(), cost.cpu, cost.reconciled, float(found["lag"]), float(found["computing"]))


def restarts() -> int:
    return sum(each["restartCount"] for pod in operator_pods() for each in pod["status"].get("containerStatuses") or [])
