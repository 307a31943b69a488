"""Two operators that look after one namespace, with other settings: each gives way, and says what is wrong."""

import copy
import json
import time
from collections.abc import Iterator

import pytest

from e2e.harness import SYSTEM, Object, apply, condition, eventually, get, kubectl
from e2e.simulation import add_nodes, on_gpus, remove_nodes

RIVAL = "rival-operator"
ENGINE_CLIENTS = "HEADWATER_OPERATOR_ENGINE_CLIENTS"


@pytest.fixture
def rival(release: None, namespace: str) -> Iterator[None]:
    """The same operator once more, for this namespace and with a Lease of its own, that lets others reach engines."""
    ours = get("deployment", "headwater-operator", SYSTEM)
    assert ours is not None
    apply(*lease_rights(), other_operator(ours, namespace))
    kubectl("rollout", "status", f"deployment/{RIVAL}", "-n", SYSTEM, "--timeout=120s", timeout=150)
    yield
    kubectl("delete", f"deployment/{RIVAL}", f"role/{RIVAL}", f"rolebinding/{RIVAL}", "-n", SYSTEM, "--timeout=60s")


def other_operator(ours: Object, namespace: str) -> Object:
    spec = copy.deepcopy(ours["spec"])
    labels = {"app": RIVAL}
    spec |= {"replicas": 1, "selector": {"matchLabels": labels}}
    spec["template"]["metadata"] = {"labels": labels}
    (container,) = spec["template"]["spec"]["containers"]
    clients = json.dumps([{"podSelector": {"matchLabels": {"app": "somebody-else"}}}])
    changed = {
        "HEADWATER_OPERATOR_LEASE_NAME": RIVAL,
        "HEADWATER_OPERATOR_NAMESPACES": json.dumps([namespace]),
        ENGINE_CLIENTS: clients,
    }
    container["env"] = [each for each in container["env"] if each["name"] not in changed]
    container["env"] += [{"name": name, "value": value} for name, value in changed.items()]
    metadata = {"name": RIVAL, "namespace": SYSTEM}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def lease_rights() -> list[Object]:
    metadata, group = {"name": RIVAL, "namespace": SYSTEM}, "rbac.authorization.k8s.io"
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
    subject = {"kind": "ServiceAccount", "name": "headwater-operator", "namespace": SYSTEM}
    return [
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": RIVAL},
            "subjects": [subject],
        },
    ]


@pytest.mark.timeout(400)
def test_two_operators_of_one_namespace_give_way_and_say_so(namespace: str, rival: None) -> None:
    add_nodes("contested-a")
    try:
        apply(on_gpus("fought-over", namespace, "vllm"))
        told = eventually("it is told", lambda: contested("fought-over", namespace), timeout=120)
        assert "--namespaces" in told["message"]
        assert "another operator" in told["message"]
        written = generation(namespace)
        eventually("each gives way", lambda: quiet(namespace), timeout=120)
        print(f"written {written} times until it was told")
    finally:
        remove_nodes("contested-a")


def contested(name: str, namespace: str) -> Object | None:
    found = condition(get("md", name, namespace), "Degraded")
    return found if found.get("reason") == "Contested" else None


def generation(namespace: str) -> int:
    return int((get("networkpolicy", "fought-over-engine", namespace) or {})["metadata"]["generation"])


def quiet(namespace: str) -> bool:
    """Nobody writes for five seconds: without giving way it would be written several times a second."""
    before = generation(namespace)
    time.sleep(5)
    return generation(namespace) == before
