"""The chart: what helm and the API server say of it, and what stays when it is upgraded or removed."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from e2e.conftest import CHART, ENGINE_IMAGE, OPERATOR_IMAGE, ROUTER_IMAGE
from e2e.harness import (
    CommandError,
    Object,
    apply,
    condition,
    eventually,
    find,
    get,
    kubectl,
    run,
    wait_ready,
    wait_routable,
)
from e2e.models import model

PREVIOUS = Path(__file__).parent / "fixtures" / "headwater-0.1.0.tgz"
"""The chart as it was before, packaged: what users have who upgrade."""
CRD = "modeldeployments.headwater.dev"
EVERYTHING: Object = {
    "imageRegistry": "registry.example.com/team",
    "imagePullSecrets": ["registry"],
    "operator": {
        "replicas": 2,
        "settings": {"weights_size": "200Gi", "weights_access_mode": "ReadWriteMany", "workers": 16},
        "podLabels": {"team": "llm"},
        "podAnnotations": {"example.com/note": "yes"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "system-cluster-critical",
    },
    "router": {
        "image": {"digest": f"sha256:{'0' * 64}"},
        "settings": {"policy": "least_loaded", "max_body_mib": 64, "hold_seconds": 0.5},
        "autoscaling": {"enabled": True},
        "service": {"type": "NodePort", "port": 8000, "annotations": {"example.com/lb": "internal"}},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    },
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "hosts": ["llm.example.com", "*.llm.example.com"],
        "tls": [{"secretName": "llm-tls", "hosts": ["llm.example.com"]}],
        "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
    },
    "redis": {"enabled": True},
    "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]},
    "dashboard": {"enabled": True},
    "policy": {"enabled": True, "images": ["registry.example.com/team/"]},
}
VALUES: dict[str, Object] = {
    "defaults": {},
    "namespaced": {"operator": {"namespaces": ["default", "kube-public"]}},
    "everything": EVERYTHING,
    "a Redis elsewhere": {"redis": {"existingSecret": "redis", "existingSecretKey": "uri"}},
    "keys of one's own": {"apiKeys": {"existingSecret": "keys"}, "monitoring": {"from": []}},
    "no keys, and nobody kept out": {"apiKeys": {"enabled": False}, "engine": {"networkPolicy": {"enabled": False}}},
    "one router": {"router": {"replicas": 1, "drainSeconds": 0}, "crds": {"install": False}},
    "gateway API": {
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["llm.example.com"]}
    },
    "pod monitors": {"monitoring": {"enabled": True, "labels": {"release": "prometheus"}}},
    "service monitors": {
        "monitoring": {"enabled": True, "kind": "ServiceMonitor"},
        "operator": {"namespaces": ["default"]},
    },
}
FOREIGN = {
    "gateway API": (
        "sigs.k8s.io/gateway-api@v1.3.0",
        "config/crd/standard",
        ["gateway.networking.k8s.io_httproutes.yaml"],
    ),
    "monitors": (
        "github.com/prometheus-operator/prometheus-operator@v0.83.0",
        "example/prometheus-operator-crd",
        [f"monitoring.coreos.com_{kind}.yaml" for kind in ("podmonitors", "prometheusrules", "servicemonitors")],
    ),
}
"""CRDs of others that the chart has objects of, by the Go module that carries them."""


def helm(*arguments: str, values: Object | None = None, timeout: float = 240) -> str:
    given = () if values is None else ("--values", "-")
    text = None if values is None else json.dumps(values, ensure_ascii=False)
    return run("helm", *arguments, *given, input=text, timeout=timeout)


def local(**more: Object) -> Object:
    """Values of a small release that runs on the cluster's images, beside the one of the other tests."""
    images = {"operator": OPERATOR_IMAGE, "router": ROUTER_IMAGE, "engine": ENGINE_IMAGE}
    values: Object = {
        part: {"image": dict(zip(("repository", "tag"), image.rsplit(":", 1), strict=True))}
        for part, image in images.items()
    }
    for part in ("operator", "router"):
        values[part] |= {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}} | more.pop(part, {})
    return values | more


# What helm says


@pytest.mark.parametrize("name", VALUES)
def test_helm_lint_finds_nothing(name: str) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), values=VALUES[name])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"router": {"replica": 3}}, "additional properties 'replica' not allowed"),
        ({"router": {"settings": {"policy": "fastest"}}}, "must be one of 'prefix', 'round_robin'"),
        ({"router": {"settings": {"max_attempts": 0}}}, "minimum: got 0, want 1"),
        ({"router": {"settings": {"port": 9000}}}, "additional properties 'port' not allowed"),
        ({"router": {"image": {"digest": "abc"}}}, "'abc' does not match pattern"),
        ({"router": {"settings": {"redis_url": "redis://r"}}}, "additional properties 'redis_url' not allowed"),
        ({"router": {"settings": {"api_keys": "/f"}}}, "additional properties 'api_keys' not allowed"),
        ({"monitoring": {"from": [{}]}}, "at '/monitoring/from/0': minProperties: got 0, want 1"),
        ({"engine": {"networkPolicy": {"from": [{"pods": {}}]}}}, "additional properties 'pods' not allowed"),
        ({"operator": {"settings": {"kv_events": "on"}}}, "must be one of 'never', 'prefix'"),
        ({"redis": {"enabled": True, "existingSecret": "redis"}}, "give one of the two"),
        ({"operator": {"settings": {"workrs": 2}}}, "additional properties 'workrs' not allowed"),
        ({"operator": {"namespaces": "default"}}, "got string, want array"),
        ({"operator": {"gatewayUrl": "llm.example.com"}}, "'llm.example.com' does not match pattern"),
        ({"ingress": {"enabled": True}}, "at '/ingress/hosts': minItems: got 0, want 1"),
        ({"ingress": {"enabled": True, "hosts": ["https://a.example.com"]}}, "at '/ingress/hosts/0'"),
        ({"httpRoute": {"enabled": True}}, "at '/httpRoute/parentRefs': minItems: got 0, want 1"),
        ({"monitoring": {"kind": "Probe"}}, "must be one of 'PodMonitor', 'ServiceMonitor'"),
        ({"policy": {"images": ["registry.example.com/team"]}}, "at '/policy/images/0'"),
        ({"imagePullPolicy": "Sometimes"}, "must be one of 'Always', 'IfNotPresent', 'Never'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_allowed(values: Object, message: str) -> None:
    with pytest.raises(CommandError, match=re.escape(message)):
        helm("template", "headwater", str(CHART), values=values)


@pytest.mark.parametrize(
    ("redis", "variable"),
    [
        ({}, {}),
        ({"enabled": True}, {"value": "redis://headwater-redis:6379"}),
        ({"existingSecret": "r"}, {"valueFrom": {"secretKeyRef": {"name": "r", "key": "url"}}}),
    ],
)
def test_routers_are_told_of_redis(redis: Object, variable: Object) -> None:
    rendered = helm("template", "headwater", str(CHART), "--show-only=templates/router.yaml", values={"redis": redis})
    deployment = next(each for each in yaml.safe_load_all(rendered) if each["kind"] == "Deployment")
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    told = [each for each in variables if each["name"] == "HEADWATER_ROUTER_REDIS_URL"]
    assert told == ([{"name": "HEADWATER_ROUTER_REDIS_URL", **variable}] if variable else [])


def test_a_route_of_the_gateway_api_cuts_no_stream() -> None:
    rendered = helm(
        *("template", "headwater", str(CHART), "--show-only=templates/entry.yaml"), values=VALUES["gateway API"]
    )
    route = next(each for each in yaml.safe_load_all(rendered) if each and each["kind"] == "HTTPRoute")
    assert [rule["timeouts"]["request"] for rule in route["spec"]["rules"]] == ["0s"]


# Who may do what


@pytest.fixture
def roles(release: None, namespace: str) -> Iterator[str]:
    """Service accounts that have view and edit, as people would, in a namespace."""
    rendered = helm(
        *("template", "tenants", str(CHART), "--namespace", namespace, "--show-only=templates/user-roles.yaml")
    )
    kubectl("apply", "--server-side", "-f", "-", input=rendered)
    for role in ("view", "edit"):
        kubectl("create", "serviceaccount", role, "-n", namespace)
        kubectl("create", "rolebinding", role, "-n", namespace, f"--clusterrole={role}",
                f"--serviceaccount={namespace}:{role}")  # fmt: skip
    yield namespace
    kubectl("delete", "-f", "-", "--wait=false", input=rendered)


def may(account: str, verb: str, what: str, namespace: str, part: str = "") -> bool:
    """`part`: a subresource. Behind a slash it would be an object's name."""
    command = ["kubectl", "auth", "can-i", verb, what, "-n", namespace, f"--subresource={part}"]
    command += ["--as", f"system:serviceaccount:{namespace}:{account}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "yes"


def test_who_may_view_or_edit_a_namespace_may_do_that_with_its_model_deployments(roles: str) -> None:
    kind = "modeldeployments.headwater.dev"
    eventually("the roles are aggregated", lambda: may("edit", "create", kind, roles), timeout=30)
    assert may("edit", "get", kind, roles) and may("edit", "patch", kind, roles, "scale")
    assert may("view", "list", kind, roles) and not may("view", "create", kind, roles)
    assert not may("edit", "patch", kind, roles, "status"), "names are kept there"


HOST_PATH = {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}
PRIVILEGED = {"containers": [{"name": "engine", "securityContext": {"privileged": True}}]}
FORBIDDEN: list[tuple[Object, str]] = [
    ({"template": {"spec": {"hostNetwork": True}}}, "may not share the node's network"),
    ({"template": {"spec": HOST_PATH}}, "may not mount folders of the node"),
    ({"template": {"spec": {"containers": [{"name": "engine", "ports": [{"hostPort": 80}]}]}}}, "ports of the node"),
    ({"template": {"spec": PRIVILEGED}}, "may gain no privileges"),
    ({"template": {"spec": {"serviceAccountName": "admin"}}}, "no service account but default"),
    ({"template": {"spec": {"automountServiceAccountToken": True}}}, "no token of a service account"),
    ({"template": {"spec": {"volumes": "all"}}}, "tenants"),
    ({"backend": {"image": "elsewhere.example.com/engine:1"}}, "images have to begin with one of"),
    ({"template": {"spec": {"initContainers": [{"name": "i", "image": "busybox"}]}}}, "images have to begin with"),
]
ALLOWED: list[Object] = [
    {},
    {"backend": {"image": "registry.example.com/team/engine:1"}},
    {"template": {"metadata": {"labels": {"team": "a"}}, "spec": {"nodeSelector": {"gpu": "h100"}}}},
    {"template": {"spec": {"serviceAccountName": None, "containers": [{"name": "engine", "resources": {}}]}}},
]


def test_the_policy_refuses_what_a_tenant_may_not_ask_for_and_nothing_else(release: None, namespace: str) -> None:
    values = {
        "policy": {"enabled": True, "images": ["registry.example.com/team/"]},
        "operator": {"namespaces": [namespace]},
    }
    rendered = helm(
        *("template", "tenants", str(CHART), "--namespace", namespace, "--show-only=templates/policy.yaml"),
        values=values,
    )
    kubectl("apply", "--server-side", "-f", "-", input=rendered)
    try:
        eventually("the policy is in force", lambda: "node's network" in asked(FORBIDDEN[0][0], namespace), timeout=60)
        for spec, words in FORBIDDEN:
            assert words in asked(spec, namespace), spec
        for spec in ALLOWED:
            assert asked(spec, namespace) == "", spec
    finally:
        kubectl("delete", "-f", "-", "--wait=false", input=rendered)


def asked(spec: Object, namespace: str) -> str:
    """What is said against a ModelDeployment of this spec; nothing if it is taken."""
    wanted = model("tenant", namespace) | {"spec": {"model": {"source": "hf://owner/model"}, **spec}}
    try:
        apply(wanted, dry_run=True)
    except CommandError as error:
        return str(error)
    return ""


# What the API server says


@pytest.fixture(scope="module")
def foreign_crds() -> Iterator[None]:
    """CRDs of the Gateway API and of Prometheus's operator, as their Go modules carry them."""
    with ExitStack() as stack:
        for module, folder, names in FOREIGN.values():
            missing = [name for name in names if not _known(name)]
            if not missing:
                continue
            if shutil.which("go") is None:
                pytest.skip(f"the cluster has no {', '.join(missing)}, and without go they cannot be had")
            place = Path(json.loads(run("go", "mod", "download", "-json", module, timeout=300))["Dir"]) / folder
            for name in missing:
                kubectl("apply", "--server-side", "-f", str(place / name))
                stack.callback(kubectl, "delete", "-f", str(place / name), "--wait=false")
                group, plural = name.removesuffix(".yaml").split("_")
                established = partial(_established, f"{plural}.{group}")
                eventually(f"{plural}.{group} is established", established, timeout=60)
        yield


def _established(crd: str) -> bool:
    # kubectl wait gives up on one that has no conditions yet.
    found = json.loads(kubectl("get", "crd", crd, "-o", "json"))
    return condition(found, "Established").get("status") == "True"


def _known(name: str) -> bool:
    group, plural = name.removesuffix(".yaml").split("_")
    return bool(kubectl("get", "crd", f"{plural}.{group}", "--ignore-not-found"))


@pytest.mark.parametrize("name", VALUES)
def test_the_api_server_accepts_every_object(name: str, namespace: str, foreign_crds: None) -> None:
    rendered = helm("template", "headwater", str(CHART), "--namespace", namespace, values=VALUES[name])
    said = kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"),
        input=rendered,
    )
    objects = [each for each in yaml.safe_load_all(rendered) if each]
    assert said.count("serverside-applied (server dry run)") == len(objects)


@pytest.mark.parametrize("name", VALUES)
def test_all_pods_meet_the_restricted_standard(name: str, namespace: str) -> None:
    rendered = helm("template", "headwater", str(CHART), "--namespace", namespace, values=VALUES[name])
    objects = [each for each in yaml.safe_load_all(rendered) if each]
    pods = [each["spec"]["template"] for each in objects if each["kind"] == "Deployment"]
    pods += [each for each in objects if each["kind"] == "Pod"]
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    for number, pod in enumerate(pods):
        metadata = {"name": f"pod-{number}", "namespace": namespace}
        spec = pod["spec"] | {"serviceAccountName": "default", "priorityClassName": ""}
        apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, dry_run=True)
    assert len(pods) >= 3


@pytest.mark.parametrize("name", ["defaults", "namespaced"])
def test_nobody_gets_secrets_of_others_or_exec_or_anything_at_all_of_everything(name: str) -> None:
    rendered = helm("template", "headwater", str(CHART), values=VALUES[name])
    for each in yaml.safe_load_all(rendered):
        for rule in (each or {}).get("rules") or []:
            asked = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not asked & {"*", "pods/exec", "pods/attach", "pods/portforward", "escalate", "bind"}, rule
            assert "persistentvolumes" not in asked, "which reach whatever a node can mount"
            if "secrets" in asked:
                own = rule["verbs"] == ["get"] and rule.get("resourceNames") == ["headwater-operator-key"]
                assert own or rule["verbs"] == ["create"], rule
        if name == "namespaced" and each is not None and each["kind"] == "ClusterRole":
            assert any("aggregate-to" in label for label in each["metadata"]["labels"]), "people's, and no program's"
        if name == "namespaced":
            assert each is None or each["kind"] != "ClusterRoleBinding"


# What stays


@contextmanager
def crd_lent() -> Iterator[None]:
    """The CRD belongs to the release that the other tests use; a second one may have it for a while."""
    before = json.loads(kubectl("get", "crd", CRD, "-o", "json", "--ignore-not-found") or "{}")
    yield
    if notes := before.get("metadata", {}).get("annotations"):
        pairs = [f"{name}={value}" for name, value in notes.items() if name.startswith("meta.helm.sh/")]
        kubectl("annotate", "--overwrite", "crd", CRD, *pairs)


def rights(release: str, namespace: str) -> dict[str, bool]:
    """What the operator may do in its namespace, and whether anything elsewhere."""
    account = f"system:serviceaccount:{namespace}:{release}-headwater-operator"
    asked = {
        "deployments": ("create", "deployments.apps", "", namespace),
        "status": ("patch", "modeldeployments.headwater.dev", "status", namespace),
        "secrets": ("get", "secrets", "", namespace),
        "exec": ("create", "pods", "exec", namespace),
        "elsewhere": ("list", "modeldeployments.headwater.dev", "", "kube-system"),
    }
    found = {}
    for name, (verb, resource, subresource, place) in asked.items():
        command = ["kubectl", "auth", "can-i", verb, resource, f"--subresource={subresource}", "-n", place]
        command += ["--as", account]
        found[name] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "yes"
    return found


def ask_as_told(notes: str) -> str:
    """Run the commands that NOTES.txt ends in, as a person would paste them. Returns what they print."""
    commands = "\n".join(line.strip() for line in notes.rstrip().splitlines()[-3:])
    assert commands.startswith("KEY=$(kubectl get secret"), commands
    # Another port than 8080, where this machine may run something.
    commands = commands.replace("8080", "18089")
    return run("bash", "-c", f"trap 'kill $!' EXIT\n{commands}", timeout=60).splitlines()[-1]


def key_of(release: str, namespace: str) -> str:
    secret = get("secret", f"{release}-headwater-api-keys", namespace)
    assert secret is not None
    return str(secret["data"]["key"])


@pytest.mark.alone  # the CRD is an earlier one meanwhile
@pytest.mark.timeout(400)
def test_an_upgrade_from_the_previous_chart_and_a_removal_keep_the_model_deployments(namespace: str) -> None:
    release = "kept"
    values = local(operator={"namespaces": [namespace]})
    with crd_lent():
        before = ("upgrade", "--install", release, "--namespace", namespace, "--take-ownership")
        # This operator looks at kinds that the previous chart gives no right to: it gets ready with the upgrade.
        helm(*before, str(PREVIOUS), values=values)
        install = (*before, "--wait", "--timeout=180s")
        apply(model("kept", namespace))
        uid = _uid("kept", namespace)

        notes = helm(*install, str(CHART), values=values | {"dashboard": {"enabled": True}})
        assert len(json.loads(helm("history", release, "--namespace", namespace, "--output=json"))) == 2
        assert _uid("kept", namespace) == uid
        assert rights(release, namespace) == {
            "deployments": True,
            "status": True,
            "secrets": False,
            "exec": False,
            "elsewhere": False,
        }
        assert json.loads(ask_as_told(notes))["object"] == "list"
        key = key_of(release, namespace)
        helm(*install, str(CHART), values=values)
        assert key_of(release, namespace) == key, "an upgrade locks all clients out"
        wait_ready("kept", namespace)
        wait_routable("kept", namespace)
        said = helm("test", release, "--namespace", namespace, "--logs", "--timeout=120s")
        assert "kept, What is the capital of France?" in said

        engines = _engine_pods(namespace)
        helm("uninstall", release, "--namespace", namespace, "--wait")
        assert _uid("kept", namespace) == uid
        left = kubectl("get", "deployments,services,serviceaccounts,roles,rolebindings", "-n", namespace, "-l",
                       f"app.kubernetes.io/instance={release}", "-o", "name")  # fmt: skip
        assert not left

        helm(*install, str(CHART), values=values)
        assert _uid("kept", namespace) == uid
        wait_ready("kept", namespace)
        assert _engine_pods(namespace) == engines, "an upgrade, a removal or a new release restarted an engine"
        kubectl("delete", "md", "kept", "-n", namespace, "--timeout=60s")
        helm("uninstall", release, "--namespace", namespace, "--wait")


def _uid(name: str, namespace: str) -> str:
    resource = get("md", name, namespace)
    assert resource is not None, "the ModelDeployment is gone"
    return str(resource["metadata"]["uid"])


def _engine_pods(namespace: str) -> set[tuple[str, int]]:
    """UID and restarts of each."""
    pods = find("pods", namespace, "headwater.dev/deployment=kept")
    return {(pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in pods}
