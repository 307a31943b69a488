"""Who gets in: clients with a key, engines' callers by policy, and a name only for the namespace that had it first."""

import json
from collections.abc import Iterator

import pytest

from e2e.conftest import ROUTER_IMAGE
from e2e.harness import (
    SYSTEM,
    Client,
    CommandError,
    Object,
    apply,
    condition,
    eventually,
    eventually_told,
    find,
    get,
    kubectl,
    wait_ready,
    wait_routable,
)
from e2e.models import model
from e2e.simulation import add_nodes, on_gpus, remove_nodes

OTHER = "e2e-trust-other"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"


@pytest.fixture
def other() -> Iterator[str]:
    """A second namespace."""
    kubectl("delete", "namespace", OTHER, "--ignore-not-found", "--wait=true", timeout=180)
    kubectl("create", "namespace", OTHER)
    yield OTHER
    kubectl("delete", "namespace", OTHER, "--wait=false")


# Clients


def on_port(name: str, path: str, service: str = "headwater-router") -> str:
    """What a router answers at one of its ports to who has no key. Raises CommandError for an error."""
    return kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/services/{service}:{name}/proxy{path}")


@pytest.mark.timeout(400)
def test_requests_need_the_key_that_the_chart_made(client: Client, namespace: str) -> None:
    apply(model("locked", namespace))
    wait_ready("locked", namespace)
    wait_routable("locked", namespace)
    assert client.ask("locked", "Hello?")["status"] == 200
    for key in ("", "sk-hw-somebody-made-this-one-up"):
        refused = client.ask("locked", "Hello?", key=key)
        assert refused["status"] == 401
        assert refused["body"]["error"]["code"] == "invalid_api_key"


def test_the_clients_port_tells_nothing_of_the_inside(release: None) -> None:
    assert "ok" in on_port("http", "/health")
    for path in ("/metrics", "/ready", "/version", "/admin/endpoints"):
        with pytest.raises(CommandError):
            on_port("http", path)


def test_metrics_are_there_for_prometheus_and_the_admin_api_for_who_has_its_key(release: None) -> None:
    assert "headwater_router_" in on_port("admin", "/metrics", "headwater-router-admin")
    assert json.loads(on_port("admin", "/ready", "headwater-router-admin"))["status"] == "ready"
    with pytest.raises(CommandError):
        on_port("admin", "/admin/endpoints", "headwater-router-admin")


# Names


@pytest.mark.timeout(600)
def test_a_name_stays_with_the_namespace_that_had_it_first(client: Client, namespace: str, other: str) -> None:
    apply(model("owner", namespace))
    wait_ready("owner", namespace)
    eventually("the name is written down", lambda: "owner" in claimed("owner", namespace))
    taker = model("taker", other, replicas=1)
    taker["spec"]["model"]["aliases"] = ["owner"]
    taker["spec"]["routing"] = {"weight": 1_000_000}
    apply(taker)
    told = eventually("the other is told", lambda: degraded("taker", other, "NameTaken"))
    assert namespace in told["message"] and f"{other}/taker" in told["message"]
    eventually_told(other, "NameTaken")
    eventually_told(namespace, "NameWanted", f"{other}/taker asks for owner", of="owner")
    wait_ready("taker", other)
    wait_routable("taker", other)
    assert client.ask(f"{other}/taker", "Hello?")["status"] == 200
    scale_to_none("taker", other)
    for number in range(5):
        assert client.ask("owner", f"Question {number}?")["status"] == 200, "it never went to who is not there"

    shared = json.dumps({"spec": {"routing": {"sharedWith": [other]}}})
    kubectl("patch", "md", "owner", "-n", namespace, "--type=merge", "-p", shared)
    eventually("it is shared", lambda: degraded("taker", other, "AsExpected"))
    kubectl("scale", "md", "taker", "-n", other, "--replicas=1")
    wait_ready("taker", other)
    theirs = [pod["metadata"]["name"] for pod in find("pods", other, "headwater.dev/deployment=taker")]

    def taken() -> bool:
        answer = client.ask("owner", "Hello?")
        assert answer["status"] == 200
        return answer["headers"]["x-headwater-endpoint"].rpartition("/")[2] in theirs

    eventually("who it is shared with answers by its weight", taken, timeout=60)


def claimed(name: str, namespace: str) -> list[str]:
    status = (get("md", name, namespace) or {}).get("status") or {}
    return [each["name"] for each in status.get("claimedNames") or []]


def degraded(name: str, namespace: str, reason: str) -> Object | None:
    found = condition(get("md", name, namespace), "Degraded")
    return found if found.get("reason") == reason else None


def scale_to_none(name: str, namespace: str) -> None:
    kubectl("scale", "md", name, "-n", namespace, "--replicas=0")
    selector = f"headwater.dev/deployment={name}"
    eventually("its engines are gone", lambda: not find("pods", namespace, selector), timeout=180)


# Engines


@pytest.mark.timeout(400)
def test_engines_are_reached_by_those_who_have_something_to_do_there(client: Client, namespace: str) -> None:
    apply(model("walled", namespace))
    wait_ready("walled", namespace)
    wait_routable("walled", namespace)
    policy = get("networkpolicy", "walled-engine", namespace)
    assert policy is not None
    (rule,) = policy["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8000]
    labels = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
    components = [each.get("app.kubernetes.io/component") for each in labels]
    assert components[:2] == ["router", "operator"]
    assert all("namespaceSelector" in peer for peer in rule["from"])
    ports = [port["name"] for port in (get("service", "walled-engine", namespace) or {})["spec"]["ports"]]
    assert ports == ["http"], "no KV events unless they are asked for"

    kubectl("delete", "networkpolicy", "walled-engine", "-n", namespace)
    eventually("it is back", lambda: get("networkpolicy", "walled-engine", namespace), timeout=30)
    assert client.ask("walled", "Hello?")["status"] == 200, "routers get in"
    (engine,) = find("pods", namespace, "headwater.dev/deployment=walled")
    if heeds_policies(namespace):
        assert not reaches(engine["status"]["podIP"], 8000), "the client is neither router nor operator"
    else:
        print("this cluster's network heeds no NetworkPolicies: what they are is all that could be looked at")


def reaches(address: str, port: int) -> bool:
    try:
        kubectl("exec", "-n", SYSTEM, "e2e-client", "--", "python3", "-c", CONNECT, address, str(port))
    except CommandError:
        return False
    return True


def heeds_policies(namespace: str) -> bool:
    """Whether a policy that lets nobody in keeps the client from a pod that it reached before."""
    listener: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "listener", "namespace": namespace, "labels": {"app": "listener"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "listener",
                    "image": ROUTER_IMAGE,
                    "command": ["python3", "-m", "http.server", "8000", "--directory", "/tmp"],
                    "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
                }
            ],
        },
    }
    nobody: Object = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "listener", "namespace": namespace},
        "spec": {"podSelector": {"matchLabels": {"app": "listener"}}, "policyTypes": ["Ingress"]},
    }
    apply(listener)
    eventually("it listens", lambda: condition(get("pod", "listener", namespace), "Ready").get("status") == "True", 60)
    address = (get("pod", "listener", namespace) or {})["status"]["podIP"]
    assert reaches(address, 8000)
    apply(nobody)
    try:
        eventually("nobody gets in", lambda: not reaches(address, 8000), timeout=15)
    except AssertionError:
        return False
    return True


@pytest.mark.timeout(300)
def test_sglang_asks_for_a_key_that_nobody_but_its_own_namespace_and_the_operator_has(
    release: None, namespace: str
) -> None:
    add_nodes("trust-a")
    try:
        apply(on_gpus("keyed", namespace, "sglang"))
        wait_ready("keyed", namespace)
        secret = get("secret", "keyed-admin", namespace)
        assert secret is not None and secret["metadata"]["ownerReferences"][0]["name"] == "keyed"
        (container,) = (get("deployment", "keyed", namespace) or {})["spec"]["template"]["spec"]["containers"]
        assert "$(HEADWATER_ADMIN_KEY)" in container["command"]
        account = f"system:serviceaccount:{SYSTEM}:headwater-operator"
        with pytest.raises(AssertionError, match="no"):
            kubectl("auth", "can-i", "get", "secrets/keyed-admin", "-n", namespace, "--as", account)
        kubectl("delete", "md", "keyed", "-n", namespace, "--timeout=60s")
        eventually("it goes with the resource", lambda: get("secret", "keyed-admin", namespace) is None, timeout=60)
    finally:
        remove_nodes("trust-a")
