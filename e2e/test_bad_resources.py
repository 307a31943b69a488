"""The API server refuses what docs/resource.md says it refuses, in those words, and agrees with Python on the rest.

Needs a cluster, or no more of it than an API server: KUBECONFIG says which. Installs the CRD; what is made goes with
its namespace.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from e2e.conftest import one_at_a_time
from e2e.harness import eventually
from e2e.refusals import LEAST, PAGE, Refusal, examples, merged, refusals
from headwater.resource import ModelDeployment
from headwater.rules import KIND_STAYS, ONE_SAYS_HOW_MANY

ROOT = Path(__file__).parents[1]
NAMESPACE = f"headwater-resources-{secrets.token_hex(4)}"
REFUSALS = refusals()

pytestmark = pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="KUBECONFIG names no cluster")


def kubectl(*arguments: str, manifest: Any = None) -> subprocess.CompletedProcess[str]:
    given = None if manifest is None else json.dumps(manifest)
    return subprocess.run(
        ["kubectl", "--namespace", NAMESPACE, *arguments], input=given, capture_output=True, text=True, timeout=60
    )


def done(*arguments: str, manifest: Any = None) -> str:
    result = kubectl(*arguments, manifest=manifest)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(*arguments: str, manifest: Any = None) -> str:
    result = kubectl(*arguments, manifest=manifest)
    assert result.returncode != 0, result.stdout
    return result.stderr


def named(name: str, **spec: Any) -> dict[str, Any]:
    return merged(LEAST, {"metadata": {"name": name}, "spec": spec})


@pytest.fixture(scope="module", autouse=True)
def crd(testrun_uid: str) -> Iterator[None]:
    with one_at_a_time(f"{testrun_uid}-release"):  # helm may be about to make it
        done("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds" / "modeldeployments.yaml"))
    done("wait", "crd/modeldeployments.headwater.dev", "--for=condition=Established", "--timeout=30s")
    done("create", "namespace", NAMESPACE)
    yield
    kubectl("delete", "modeldeployments", "--all", "--wait=false")
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def test_there_are_refusals_enough() -> None:
    assert len(REFUSALS) >= 25


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.wrong)
def test_a_bad_resource_is_refused_with_the_field_and_the_message_that_the_docs_promise(refusal: Refusal) -> None:
    told = refused("apply", "--dry-run=server", "-f", "-", manifest=refusal.resource)
    line = next((line for line in told.splitlines() if refusal.field in line and refusal.message in line), None)
    assert line, told


GOOD = [
    *examples(),
    *(each for path in sorted((ROOT / "examples").glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())),
]


@pytest.mark.parametrize("resource", GOOD, ids=lambda resource: ",".join(resource["spec"]))
def test_a_good_resource_is_taken_and_what_is_filled_in_is_what_python_fills_in(resource: dict[str, Any]) -> None:
    stored = json.loads(done("apply", "--dry-run=server", "-o", "json", "-f", "-", manifest=resource))
    ours = ModelDeployment.model_validate(resource)
    assert ModelDeployment.model_validate(stored).spec == ours.spec


FULL: dict[str, Any] = {
    "model": {
        "source": "hf://owner/model",
        "revision": "v1",
        "secretRef": {"name": "hub", "key": "token"},
        "aliases": ["small", "owner/model"],
    },
    "backend": {"type": "vllm", "image": "vllm:1", "version": "v1", "args": ["--x"], "env": {"A": "b"}},
    "replicas": 2,
    "parallelism": {"tensor": 4, "nodes": 2},
    "resources": {"limits": {"nvidia.com/gpu": 2, "cpu": "500m"}, "requests": {"memory": "1Gi"}},
    "context": {"maxTokens": 4096},
    "quantization": "fp8",
    "cache": {"fraction": 0.5, "hostGiB": 8, "dtype": "fp8"},
    "adapters": [{"name": "sql", "source": "hf://owner/sql"}, {"name": "law", "source": "s3://b/law"}],
    "autoscaling": {
        "min": 0,
        "max": 8,
        "inFlightPerReplica": 16,
        "tolerance": 0.2,
        "stableWindow": "2m",
        "panicWindow": "10s",
        "scaleUpDelay": "1m",
        "scaleDownDelay": "1h5m30s",
    },
    "routing": {"policy": "session", "weight": 50, "sharedWith": ["research", "*"]},
    "rollout": {"strategy": "Surge", "paused": True},
    "weights": {"cached": True, "size": "50Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"},
    "loadTimeout": "3h",
    "drainTimeout": "90s",
    "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"nodeSelector": {"zone": "a"}}},
}
VALUES: list[Any] = [
    *(None, True, 0, 1, 2, 3, -1, 4096, 10**7, 2**31, 0.5, 1.5, [], {}, [1], ["a"], ["a", "a"], {"a": 1}, {"a": "b"}),
    *(
        "",
        " ",
        "a",
        "A",
        "a b",
        "é",
        "-a",
        "a.b",
        "1",
        "0.5",
        "50Gi",
        "1.5Ti",
        "5GB",
        "1e3",
        "main",
        "auto",
        "x" * 2000,
    ),
    *(
        "0s",
        "1s",
        "5m",
        "1h30m",
        "30m1h",
        "1.5h",
        "99999999s",
        "PT1M",
        "24h",
        "24h1s",
        "hf://a/b",
        "hf://a",
        "pvc://A/b",
    ),
    *("s3://b/c d", "oci://r/i:1", "file://x", "file://", "package://7", "random:tiny", "\thf://a/b", "hf://a/b\n"),
]
"""What might be written somewhere by mistake."""


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every field, but for what is in maps with keys of the user's own: there the API server drops a null."""
    if path:
        yield path
    if (path and path[-1] in ("env", "limits", "requests", "labels")) or path == ("template", "spec"):
        return
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(each, (*path, key))


def put(spec: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """Unless an earlier mistake has taken away what holds the field."""
    holder: Any = spec
    for i, part in enumerate(path):
        there = isinstance(holder, dict) if isinstance(part, str) else isinstance(holder, list) and part < len(holder)
        if not there:
            return
        if i == len(path) - 1:
            holder[part] = value
        else:
            holder = holder.get(part) if isinstance(holder, dict) else holder[part]


def python_takes(resource: dict[str, Any]) -> bool:
    try:
        ModelDeployment.model_validate(resource)
    except ValidationError:
        return False
    return True


@given(
    fixed=st.booleans(),
    mistakes=st.lists(st.tuples(st.sampled_from(sorted(paths(FULL), key=str)), st.sampled_from(VALUES)), max_size=2),
)
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_python_and_the_api_server_take_and_refuse_the_same(
    fixed: bool, mistakes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    spec = deepcopy(FULL)
    del spec["autoscaling" if fixed else "replicas"]
    for path, value in mistakes:
        put(spec, path, value)
    resource = LEAST | {"spec": spec}
    result = kubectl("create", "--dry-run=server", "-f", "-", manifest=resource)
    assert python_takes(resource) == (result.returncode == 0), result.stderr


# What else a person or an autoscaler does with it


def test_a_replica_cannot_become_several_pods_later_as_the_docs_say() -> None:
    done("apply", "-f", "-", manifest=named("kind"))
    wider = named("kind", parallelism={"tensor": 2, "nodes": 2})
    assert KIND_STAYS.message in refused("apply", "-f", "-", manifest=wider)
    assert KIND_STAYS.message in " ".join(PAGE.read_text().split())
    done("apply", "-f", "-", manifest=named("kind", parallelism={"tensor": 2}))


def test_other_autoscalers_set_the_number_of_replicas() -> None:
    done("apply", "-f", "-", manifest=named("scaled", replicas=1))
    done("scale", "md/scaled", "--replicas=3")
    status = {"replicas": 2, "selector": "headwater.dev/deployment=scaled"}

    def told() -> bool:
        # Where an operator runs, it may write its own status in between.
        patch = json.dumps({"status": status})
        done("patch", "md", "scaled", "--subresource=status", "--type=merge", "--patch", patch)
        scale = json.loads(done("get", "md", "scaled", "--subresource=scale", "-o", "json"))
        assert scale["spec"] == {"replicas": 3}
        assert scale["status"] == status
        return True

    eventually("the scale tells the status", told, timeout=30)


def test_a_number_that_was_never_set_is_told_to_autoscalers_as_the_docs_say() -> None:
    done("apply", "-f", "-", manifest=named("unscaled"))
    assert '".spec.replicas" does not exist' in refused("get", "md", "unscaled", "--subresource=scale")
    done("scale", "md/unscaled", "--replicas=2")
    assert done("get", "md", "unscaled", "-o", "jsonpath={.spec.replicas}") == "2"


def test_other_autoscalers_are_kept_off_what_scales_itself() -> None:
    done("apply", "-f", "-", manifest=named("selfscaled", autoscaling={"max": 4}))
    assert ONE_SAYS_HOW_MANY.message in refused("scale", "md/selfscaled", "--replicas=3")


def test_two_appliers_each_keep_their_own_adapter() -> None:
    for name in ("sql", "law"):
        adapters = [{"name": name, "source": f"hf://owner/{name}"}]
        done(
            "apply", "--server-side", f"--field-manager={name}", "-f", "-", manifest=named("shared", adapters=adapters)
        )
    assert done("get", "md", "shared", "-o", "jsonpath={.spec.adapters[*].name}").split() == ["sql", "law"]


def test_the_list_shows_what_matters_and_more_when_wide() -> None:
    done("apply", "-f", "-", manifest=named("listed"))
    assert " ".join(done("get", "md").splitlines()[0].split()) == "NAME MODEL BACKEND READY SERVING PHASE URL AGE"
    wide = " ".join(done("get", "md", "listed", "-o", "wide").splitlines()[0].split())
    assert wide.endswith(" AGE WANTED UPDATED TENSOR NODES REVISION POLICY REASON MESSAGE")


def test_explain_says_what_a_field_means_and_its_default() -> None:
    told = " ".join(done("explain", "md.spec.autoscaling").split())
    assert (
        "scaleDownDelay <string> For how long fewer replicas must have been wanted, at most 24h. Default: 5m." in told
    )
