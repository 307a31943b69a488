"""What the API server cannot refuse ends in a condition that says what to do, and in a Warning event."""

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.conftest import fresh_namespace
from e2e.harness import Client, CommandError, Object, apply, condition, eventually, eventually_told, get
from e2e.models import model
from e2e.simulation import add_nodes, add_volumes, on_gpus, remove_nodes, remove_volumes

UNMOUNTABLE: Object = {
    "containers": [{"name": "engine", "volumeMounts": [{"name": "certs", "mountPath": "/certs"}]}],
    "volumes": [{"name": "certs", "secret": {"secretName": "there-is-none"}}],
}

QUOTA: Object = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "none", "namespace": "e2e-mistakes"},
    "spec": {"hard": {"requests.example.com/none": "0"}},
}
REFUSED: Object = {"containers": [{"name": "engine", "resources": {"limits": {"example.com/none": "1"}}}]}
"""What that quota has none of; nobody else asks for it."""


APART = "e2e-apart"
"""A StorageClass of its own, so that nobody else takes the volume."""
NODES = ("apart-a", "apart-b")


def wrong(name: str, namespace: str) -> Object:
    """A ModelDeployment with the mistake of that name."""
    changes: dict[str, dict[str, Any]] = {
        "image": {"backend": {"type": "headwater", "image": "localhost/there-is-none:1"}},
        "secret": {"source": "hf://lab/model", "weights": {"cached": False}, "token": "there-is-none"},
        "flag": {"backend": {"type": "headwater", "args": ["--no-such-flag"]}},
        "emoji": {"backend": {"type": "headwater", "args": ["--no-such-flag-\U0001f600"]}},
        "typo": {"template": {"spec": {"nodeSelektor": {"there": "is-none"}}}},
        "mount": {"template": {"spec": UNMOUNTABLE}},
        "container": {"template": {"spec": {"containers": [{"name": "vllm", "env": [{"name": "A", "value": "b"}]}]}}},
        "node": {"template": {"spec": {"nodeSelector": {"there": "is-none"}}}},
        "quota": {"template": {"spec": REFUSED}, "parallelism": {"tensor": 2, "nodes": 2}},
    }
    match name:
        case "backend":
            resource = on_gpus(name, namespace, "tgi")
            del resource["spec"]["backend"]["image"]
        case "apart":
            # Each of two nodes has room for one of them, and the volume is where the first one runs.
            weights = {"cached": True, "size": "1Gi", "storageClassName": APART}
            resource = on_gpus(name, namespace, "vllm", replicas=2, parallelism={"tensor": 8}, weights=weights)
            resource["spec"]["model"]["source"] = "hf://lab/apart"  # for a volume that it shares with nobody
        case "claim":
            resource = model(name, namespace, source="pvc://there-is-none/model")
        case "class":
            resource = model(name, namespace, source="hf://lab/model", weights={"storageClassName": "there-is-none"})
        case _:
            spec = changes[name]
            resource = model(name, namespace)
            if (token := spec.pop("token", None)) is not None:
                resource["spec"]["model"] = {"source": spec.pop("source"), "secretRef": {"name": token}}
            resource["spec"] |= spec
    return resource


CASES = [
    ("image", "Degraded", "ImagePullFailed", "spec.backend.image"),
    ("secret", "Degraded", "ConfigMissing", "there-is-none"),
    ("flag", "Degraded", "CrashLoop", "kubectl logs"),
    ("emoji", "Degraded", "CrashLoop", "--no-such-flag-\U0001f600"),
    ("backend", "Degraded", "Unsupported", "spec.backend.image"),
    ("node", "Ready", "Unschedulable", "affinity/selector"),
    ("claim", "Degraded", "VolumeMissing", "there-is-none"),
    ("typo", "Degraded", "Refused", "nodeSelektor"),
    ("mount", "Degraded", "FailedMount", "there-is-none"),
    ("container", "Degraded", "Unsupported", "called `engine`"),
    ("quota", "Degraded", "PodsRefused", "exceeded quota: none"),
    ("class", "Degraded", "VolumePending", '"there-is-none" not found'),
    ("apart", "Degraded", "VolumeReachesOneNode", "didn't match pod affinity rules"),
]


@pytest.fixture(scope="module")
def namespace(release: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """With all of the mistakes: to wait for one of them is to wait for all."""
    with fresh_namespace("e2e-mistakes", request.node):
        add_nodes(*NODES)
        add_volumes([APART], storage_class=APART)
        apply(QUOTA)
        eventually(
            "the quota counts", lambda: "hard" in ((get("quota", "none", "e2e-mistakes") or {}).get("status") or {})
        )
        apply(*(wrong(name, "e2e-mistakes") for name, *_ in CASES))
        yield "e2e-mistakes"
        remove_nodes(*NODES)
        remove_volumes(APART)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("name", "kind", "reason", "words"), CASES)
def test_a_mistake_ends_in_a_condition_that_says_what_to_do(
    namespace: str, name: str, kind: str, reason: str, words: str
) -> None:
    found = eventually(
        f"{kind} says {reason}",
        lambda: said if (said := condition(get("md", name, namespace), kind)).get("reason") == reason else None,
        timeout=150,
    )
    assert words in found["message"]
    if kind == "Degraded":
        assert eventually_told(namespace, reason, words, of=name)["type"] == "Warning"


def test_a_request_for_what_has_failed_is_refused_at_once_with_the_reason(client: Client, namespace: str) -> None:
    eventually("it has failed", lambda: phase("image", namespace) == "Failed", timeout=120)

    def told() -> Object | None:
        answer = client.ask("image", "Hello?", timeout=60)  # of the 120 s that a request may be held here
        return answer if "ImagePullFailed" in str(answer["body"]) else None

    refused = eventually("the routers have heard of it", told, timeout=60)
    assert refused is not None and refused["status"] == 503


def phase(name: str, namespace: str) -> str | None:
    return ((get("md", name, namespace) or {}).get("status") or {}).get("phase")


def test_more_replicas_than_the_platform_allows_are_refused_at_apply(namespace: str) -> None:
    with pytest.raises(
        CommandError, match=r"spec\.replicas: times parallelism\.nodes must be at most 100, which the platform"
    ):
        apply(model("many", namespace, replicas=10_000))
