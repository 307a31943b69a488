"""An engine of TensorRT-LLM is built once, where it is asked for, and kept."""

import json
from typing import Any

import pytest

from headwater_operator.render import ClaimDefaults, Manifest, build_name, render_build
from headwater_operator.render.versions import pod_template
from tests.operator.rendering import BACKENDS, WEIGHTS, built, context, deployment, engine

ASKED = {"args": ["--backend", "tensorrt"]}


def build(**spec: Any) -> tuple[Manifest, Manifest]:
    wanted = deployment("tensorrt-llm", backend=ASKED, **spec)
    claim, job = render_build(wanted, context(wanted, weights=WEIGHTS))
    return claim, job


@pytest.mark.parametrize("server", BACKENDS)
def test_nothing_is_built_unasked(server: str) -> None:
    wanted = deployment(server)
    assert render_build(wanted, context(wanted)) == []


@pytest.mark.parametrize(
    ("args", "builds"),
    [
        (["--backend", "trt"], True),
        (["--backend=tensorrt"], True),
        (["--backend", "tensorrt", "--backend", "pytorch"], False),
        (["--backend"], False),
        (["--backend", "pytorch"], False),
        (["--backend_of_mine", "trt"], False),
    ],
)
def test_the_last_choice_of_a_backend_counts(args: list[str], builds: bool) -> None:
    wanted = deployment("tensorrt-llm", backend={"args": args})
    assert bool(render_build(wanted, context(wanted))) is builds


def test_the_job_writes_where_the_server_reads() -> None:
    wanted = deployment("tensorrt-llm", backend=ASKED, parallelism={"tensor": 4}, context={"maxTokens": 4096})
    made = context(wanted, weights=WEIGHTS)
    claim, job = render_build(wanted, made)
    name = build_name(wanted, made.pin)
    assert claim["metadata"]["name"] == job["metadata"]["name"] == name
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert json.loads(container["command"][-1]) == {
        "model": {"model": "/models/model", "tensor_parallel_size": 4},
        "build": {"max_seq_len": 4096},
        "folder": "/engine",
    }
    assert {"name": "engine", "mountPath": "/engine"} in container["volumeMounts"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    server = engine(pod_template(wanted, built(wanted, made)))
    assert server["command"][1] == "/engine"
    assert {"name": "engine", "mountPath": "/engine", "readOnly": True} in server["volumeMounts"]
    assert server["command"][server["command"].index("--tokenizer") + 1] == "/models/model"


def test_there_is_no_pod_before_its_engine() -> None:
    wanted = deployment("tensorrt-llm", backend=ASKED)
    with pytest.raises(ValueError, match="not built yet"):
        pod_template(wanted, context(wanted))


def test_the_program_is_one_that_python_reads() -> None:
    _, job = build()
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:2] == ["python3", "-c"]
    compile(command[2], "build", "exec")


def test_it_is_built_on_the_kind_of_node_that_it_is_for() -> None:
    own = {"nodeSelector": {"gpu": "h100"}, "priorityClassName": "high", "hostname": "h"}
    _, job = build(template={"spec": own})
    pod = job["spec"]["template"]["spec"]
    assert (pod["nodeSelector"], pod["priorityClassName"]) == ({"gpu": "h100"}, "high")
    assert "hostname" not in pod


def test_a_build_pulls_its_image_as_the_server_does() -> None:
    _, job = build(template={"spec": {"imagePullSecrets": [{"name": "registry"}]}})
    assert job["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_a_volume_is_as_the_resource_says_else_as_the_operator_does() -> None:
    defaults = ClaimDefaults("7Gi", "slow", "ReadWriteMany")
    wanted = deployment("tensorrt-llm", backend=ASKED)
    spec = render_build(wanted, context(wanted, claims=defaults))[0]["spec"]
    assert (spec["storageClassName"], spec["accessModes"]) == ("slow", ["ReadWriteMany"])
    assert spec["resources"]["requests"]["storage"] == "7Gi"
    own, _ = build(weights={"size": "9Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"})
    assert (own["spec"]["storageClassName"], own["spec"]["resources"]["requests"]["storage"]) == ("fast", "9Gi")
