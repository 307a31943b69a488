"""The cluster that the tests share, the release of the chart on it, and a namespace for each test.

`make e2e` has set KUBECONFIG: to a cluster of its own, or to the one that it was given.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

import pytest
from filelock import FileLock

from e2e.harness import ROOT, SYSTEM, Client, Object, apply, condition, eventually, explain, get, kubectl, run
from e2e.models import ENGINE_IMAGE, TAG

ROUTER_IMAGE = os.environ.get("HEADWATER_E2E_ROUTER_IMAGE", f"localhost/headwater-router:{TAG}")
OPERATOR_IMAGE = os.environ.get("HEADWATER_E2E_OPERATOR_IMAGE", f"localhost/headwater-operator:{TAG}")
RELEASE = "headwater"
CHART = ROOT / "charts" / "headwater"
API_KEY = {"name": "headwater-api-keys", "key": "key"}
"""The key that the chart made, in its Secret."""


def pytest_configure(config: pytest.Config) -> None:
    if not os.environ.get("KUBECONFIG"):
        raise pytest.UsageError("KUBECONFIG is not set: run `make e2e`, which starts a cluster where none is given")
    config.addinivalue_line("markers", "alone: changes what tests share, or counts on being the only one")


@contextmanager
def one_at_a_time(run: str) -> Iterator[Path]:
    """Of all workers of a run. Gives a file for what they are to know of one another."""
    note = Path(gettempdir()) / f"headwater-e2e-{run}"
    with FileLock(note.with_suffix(".lock")):
        yield note


def install(*extra: str) -> None:
    """Install the chart, or bring it up to date."""
    values = Path(__file__).parent / "values.yaml"
    images = [f"{part}.image.repository={image.rpartition(':')[0]}" for part, image in _images()]
    tags = [f"{part}.image.tag={image.rpartition(':')[2]}" for part, image in _images()]
    # The router's image has headwater in it, as a Job needs it; that of the engine wants it mounted.
    fetcher = f"operator.settings.weights_image={ROUTER_IMAGE}"
    sets = [argument for value in (*images, *tags, fetcher) for argument in ("--set-string", value)]
    run(
        *("helm", "upgrade", "--install", RELEASE, str(CHART), "-n", SYSTEM, "--create-namespace"),
        # The CRD outlives releases, and remembers whose it was.
        *("-f", str(values), *sets, *extra, "--take-ownership", "--wait", "--timeout", "180s"),
        timeout=240,
    )


def _images() -> list[tuple[str, str]]:
    return [("operator", OPERATOR_IMAGE), ("router", ROUTER_IMAGE), ("engine", ENGINE_IMAGE)]


@pytest.fixture(scope="session")
def release(testrun_uid: str) -> None:
    """Operator and routers, by the chart."""
    with one_at_a_time(f"{testrun_uid}-release") as done:
        if not done.exists():
            install()
            done.touch()


@pytest.fixture(scope="session")
def client(release: None, testrun_uid: str) -> Client:
    """A pod that asks the gateway."""
    with one_at_a_time(f"{testrun_uid}-client") as done:
        if not done.exists():
            start_client()
            done.touch()
    return Client()


def start_client() -> None:
    script = (Path(__file__).parent / "client.py").read_text()
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "e2e-client", "namespace": SYSTEM},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "client",
                    "image": ROUTER_IMAGE,
                    "command": ["python3", "-c", "import signal; signal.pause()"],
                    "env": [{"name": "HEADWATER_API_KEY", "valueFrom": {"secretKeyRef": API_KEY}}],
                    "volumeMounts": [{"name": "client", "mountPath": "/client"}],
                }
            ],
            "volumes": [{"name": "client", "configMap": {"name": "e2e-client"}}],
        },
    }
    script_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "e2e-client", "namespace": SYSTEM},
        "data": {"client.py": script},
    }
    kubectl("delete", "pod", "e2e-client", "-n", SYSTEM, "--ignore-not-found", "--wait=true")
    apply(script_map, pod)
    eventually("the client", lambda: condition(get("pod", "e2e-client", SYSTEM), "Ready").get("status") == "True", 60)


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own. Where the test fails, what is in it is shown before it goes."""
    name = "e2e-" + re.sub(r"[^a-z0-9]+", "-", request.node.originalname.removeprefix("test_"))[:40].strip("-")
    with fresh_namespace(name, request.node):
        yield name


@contextmanager
def fresh_namespace(name: str, node: pytest.Item | pytest.Collector) -> Iterator[None]:
    """For a test, or for a file of tests. Where one fails, what is in it is shown before it goes."""
    kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=true", timeout=180)
    kubectl("create", "namespace", name)
    yield
    if getattr(node, "failed", False):
        print(explain([name, SYSTEM]))
        print(operator_log())
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call" and report.failed:
        for node in item.listchain():
            node.failed = True  # type: ignore[attr-defined]
    return report


def operator_log() -> str:
    return kubectl("logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--tail=80", "--prefix")


def operator_pods() -> list[Object]:
    text = kubectl("get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "-o", "json")
    return list(json.loads(text)["items"])


def metrics_of(pod: str, port: int) -> str:
    return kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{pod}:{port}/proxy/metrics")
