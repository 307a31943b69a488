"""Our own engine over several ranks: on GPUs where the resources name some, else on CPUs, in one pod or in several."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from headwater import cli
from headwater.backends.base import UnsupportedError
from headwater.resource import Cache
from headwater_engine.config import EngineSettings
from headwater_engine.server import serve as engine_serve
from headwater_operator.render import CURRENT_RENDER_VERSION, Manifest, render, render_group
from headwater_operator.render.versions import pod_template
from tests.operator.rendering import context, deployment, engine, env_of

GOLDEN = Path(__file__).parent / "golden"
TWO_GPUS = {"parallelism": {"tensor": 2}, "resources": {"limits": {"nvidia.com/gpu": 2}}}


def container(version: int = CURRENT_RENDER_VERSION, **spec: Any) -> Manifest:
    wanted = deployment("headwater", **spec)
    group = 0 if wanted.spec.parallelism.nodes > 1 else None
    return engine(pod_template(wanted, context(wanted, version), group))


def flag(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


def test_without_gpus_the_ranks_are_processes_on_the_cpu() -> None:
    made = container(parallelism={"tensor": 2})
    assert flag(made["command"], "--tensor-parallel-size") == "2"
    assert made["resources"] == {}
    assert "--device" not in made["command"] and "--gpu-memory-utilization" not in made["command"]


def test_on_gpus_each_rank_has_one_and_takes_the_share_of_its_memory_that_it_may() -> None:
    command = container(**TWO_GPUS, cache={"fraction": 0.7, "dtype": "fp8"})["command"]
    assert flag(command, "--tensor-parallel-size") == "2"
    assert (flag(command, "--gpu-memory-utilization"), flag(command, "--kv-cache-dtype")) == ("0.7", "fp8")


@pytest.mark.parametrize(
    ("resources", "device"),
    [
        ({}, None),
        ({"limits": {"cpu": 4, "memory": "9Gi"}}, None),
        ({"limits": {"nvidia.com/gpu": 0}}, None),
        ({"limits": {"nvidia.com/gpu": "1"}}, "cuda"),
        ({"limits": {"nvidia.com/gpu": 1, "rdma/hca": 1}}, "cuda"),
        ({"limits": {"nvidia.com/mig-1g.10gb": 1}}, "cuda"),
        ({"claims": [{"name": "gpu"}]}, None),
    ],
)
def test_a_pod_that_was_given_a_gpu_does_without_only_by_saying_so(resources: Any, device: str | None) -> None:
    """A missing driver must not end in an engine that is a hundred times slower, and ready."""
    assert flag(container(resources=resources)["command"], "--device") == device


@pytest.mark.parametrize(
    "file",
    sorted((GOLDEN / f"v{CURRENT_RENDER_VERSION}").glob("headwater-*.yaml")),
    ids=lambda file: file.stem,
)
def test_our_engine_understands_what_its_pods_start_it_with(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[EngineSettings] = []
    monkeypatch.setattr(engine_serve, "run", lambda settings: served.append(settings) or 0)
    monkeypatch.setattr("headwater.cli.serve.look", lambda model: None)  # the volume is mounted in the pod alone
    command = engine(yaml.safe_load(file.read_text()))["command"]
    program, *arguments = (argument.replace("$(GROUP_RANK)", "1") for argument in command)
    assert (program, cli.main(arguments)) == ("headwater", 0)
    assert (served[0].host, served[0].port) == ("0.0.0.0", 8000)


def test_a_share_of_the_gpus_memory_means_the_same_in_the_resource_and_in_our_engine() -> None:
    assert Cache().fraction == EngineSettings.model_fields["gpu_memory_utilization"].default


def test_engines_of_earlier_render_versions_find_their_device_as_they_did() -> None:
    for version in (1, 2):
        assert "--device" not in container(version, resources={"limits": {"nvidia.com/gpu": 1}})["command"]


@pytest.mark.parametrize("resources", [{}, {"limits": {"nvidia.com/gpu": 0}}])
def test_a_cache_in_8_bits_needs_a_gpu(resources: Any) -> None:
    with pytest.raises(UnsupportedError, match=r'^m: spec\.cache\.dtype: .* only "auto" and "bfloat16" here'):
        container(resources=resources, cache={"dtype": "fp8"})
    assert container(resources={"claims": [{"name": "gpu"}]}, cache={"dtype": "fp8"}), "whatever the claim is of"


@pytest.mark.parametrize("parallelism", [{}, {"tensor": 2}, {"tensor": 4, "nodes": 2}])
def test_the_cores_of_a_pod_are_for_all_its_ranks_together(parallelism: Any) -> None:
    command = container(parallelism=parallelism, resources={"limits": {"cpu": 8}})["command"]
    assert flag(command, "--threads") == "8"


def test_the_pods_of_a_group_meet_at_their_leader() -> None:
    wanted = deployment("headwater", parallelism={"tensor": 4, "nodes": 2})
    group = render_group(wanted, context(wanted), 3)
    made = engine(group["spec"]["template"])
    command = made["command"]
    assert (flag(command, "--tensor-parallel-size"), flag(command, "--nodes")) == ("4", "2")
    assert flag(command, "--node-rank") == "$(GROUP_RANK)"
    host, _, port = str(flag(command, "--leader")).rpartition(":")
    assert host == f"{group['metadata']['name']}-0.m-workers.models.svc"
    assert not set(range(int(port), int(port) + 3)) & {8000, 5557}, "it takes two more ports"
    assert env_of(made)["GLOO_SOCKET_IFNAME"] == env_of(made)["NCCL_SOCKET_IFNAME"] == "eth0"


def test_every_pod_of_a_group_says_itself_whether_it_is_there() -> None:
    made = container(parallelism={"tensor": 2, "nodes": 2})
    assert made["readinessProbe"]["httpGet"]["path"] == made["startupProbe"]["httpGet"]["path"] == "/ready"
    assert made["livenessProbe"]["httpGet"]["path"] == "/health"


def test_requests_go_to_the_rank_that_serves_them() -> None:
    wanted = deployment("headwater", parallelism={"tensor": 2, "nodes": 2})
    service = next(each for each in render(wanted, context(wanted)) if each["metadata"]["name"] == "m-engine")
    assert service["spec"]["selector"]["apps.kubernetes.io/pod-index"] == "0"


def test_the_pods_of_a_group_are_on_machines_of_their_own_where_there_are_some() -> None:
    wanted = deployment("headwater", parallelism={"tensor": 2, "nodes": 2})
    (spread,) = pod_template(wanted, context(wanted), 0)["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
