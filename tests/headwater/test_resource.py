"""A ModelDeployment file is read as written, and each mistake is answered with its place and what is allowed."""

from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from headwater.resource import Model, ModelDeployment, ResourceError, Spec, load, problems
from headwater.values import MAX_NAME


def written(tmp_path: Path, *specs: dict, **top) -> Path:
    documents = [
        {
            "apiVersion": "headwater.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": f"m{i}"},
            "spec": {"model": {"source": "hf://owner/model"}, **spec},
            **top,
        }
        for i, spec in enumerate(specs)
    ]
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def error_of(path: Path) -> str:
    with pytest.raises(ResourceError) as caught:
        load(path)
    return str(caught.value)


FULL = """\
apiVersion: headwater.dev/v1alpha1
kind: ModelDeployment
metadata: {name: smollm2, namespace: models, labels: {team: a}, uid: 1234}
spec:
  model:
    source: hf://HuggingFaceTB/SmolLM2-135M-Instruct
    revision: v2
    secretRef: {name: hub, key: hf}
    aliases: [small, HuggingFaceTB/SmolLM2-135M-Instruct]
  backend: {type: vllm, image: "vllm:1", version: "0.32", args: [--x], env: {A: b}}
  parallelism: {tensor: 4, pipeline: 1, data: 1, expert: false, nodes: 2}
  resources: {limits: {nvidia.com/gpu: 2}}
  context: {maxTokens: 4096}
  sampling: {temperature: 0, topP: 0.9, topK: 40, minP: 0.05, repetitionPenalty: 1.1, presencePenalty: 0.5,
             frequencyPenalty: -0.5, maxTokens: 512}
  quantization: fp8
  cache: {fraction: 0.5, hostGiB: 8, dtype: fp8}
  adapters: [{name: sql, source: hf://owner/sql}]
  autoscaling: {min: 0, max: 8, inFlightPerReplica: 16, scaleDownDelay: 1h5m30s, tolerance: 0.2}
  routing: {policy: least_loaded, objective: throughput, weight: 50, share: Auto, sharedWith: [research, "*"]}
  rollout: {strategy: Surge, paused: true}
  weights: {cached: true, size: 50Gi, storageClassName: fast, accessMode: ReadWriteMany, keep: false}
  loadTimeout: 3h
  drainTimeout: 90s
  template: {spec: {nodeSelector: {zone: a}}}
status: {phase: Ready}
"""


def test_every_field_of_the_design_is_read(tmp_path):
    path = tmp_path / "full.yaml"
    path.write_text(FULL)
    (deployment,) = load(path)
    spec = deployment.spec
    assert deployment.served_names == ["smollm2", "small", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert (spec.model.revision, spec.backend.type, spec.backend.env) == ("v2", "vllm", {"A": "b"})
    assert (spec.parallelism.tensor, spec.parallelism.nodes, spec.context.max_tokens) == (4, 2, 4096)
    assert (spec.quantization, spec.cache.fraction, spec.cache.host_gib, spec.cache.dtype) == ("fp8", 0.5, 8, "fp8")
    assert (spec.sampling.temperature, spec.sampling.top_p, spec.sampling.top_k) == (0, 0.9, 40)
    assert (spec.sampling.min_p, spec.sampling.repetition_penalty, spec.sampling.max_tokens) == (0.05, 1.1, 512)
    assert (spec.sampling.presence_penalty, spec.sampling.frequency_penalty) == (0.5, -0.5)
    assert spec.adapters[0].name == "sql"
    assert spec.autoscaling is not None
    assert spec.autoscaling.scale_down_delay == timedelta(hours=1, minutes=5, seconds=30)
    assert (spec.routing.policy, spec.routing.weight, spec.rollout.strategy) == ("least_loaded", 50, "Surge")
    assert spec.model.secret_ref is not None
    assert (spec.model.secret_ref.name, spec.model.secret_ref.key) == ("hub", "hf")
    assert (spec.rollout.paused, spec.weights.size, spec.weights.keep) == (True, "50Gi", False)
    assert (spec.load_timeout, spec.drain_timeout) == (timedelta(hours=3), timedelta(seconds=90))
    assert spec.template == {"spec": {"nodeSelector": {"zone": "a"}}}


def test_what_is_read_is_written_back_with_the_same_names(tmp_path):
    path = tmp_path / "full.yaml"
    path.write_text(FULL)
    (deployment,) = load(path)
    spec = deployment.model_dump(by_alias=True)["spec"]
    for field, value in yaml.safe_load(FULL)["spec"].items():
        if field not in ("autoscaling", "loadTimeout", "drainTimeout"):  # which are or hold durations by then
            assert spec[field] == value


def test_a_model_and_its_source_are_enough(tmp_path):
    (deployment,) = load(written(tmp_path, {}))
    assert (deployment.spec.backend.type, deployment.spec.first_replicas) == ("auto", 1)


def test_a_file_may_hold_several_documents_and_empty_ones(tmp_path):
    path = written(tmp_path, {"replicas": 2}, {"autoscaling": {"max": 4, "min": 3}})
    path.write_text(path.read_text() + "\n---\n---\n")
    assert [(each.name, each.spec.first_replicas) for each in load(path)] == [("m0", 2), ("m1", 3)]


@pytest.mark.parametrize(
    "source",
    ["hf://o/m", "hf://o/m/q4.gguf", "s3://b/p", "oci://r/i:1", "pvc://c/p", "file:///m", "package://p", "random:tiny"],
)
def test_every_scheme_of_a_source_is_known(tmp_path, source):
    (deployment,) = load(written(tmp_path, {"model": {"source": source}}))
    assert deployment.spec.model.source == source


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"parallelism": {"tensor": 0}}, "spec.parallelism.tensor: must be greater than or equal to 1, found 0"),
        (
            {"parallelism": {"tensor": 3, "nodes": 2}},
            "spec.parallelism.nodes: must divide `tensor` x `pipeline` x `data`; found 2",
        ),
        ({"replica": 2}, "spec.replica: unknown field; did you mean `replicas`? Allowed: model, backend, replicas,"),
        ({"cache": {"host_gib": 2}}, "spec.cache.host_gib: unknown field; did you mean `hostGiB`?"),
        ({"xyz": 2}, "spec.xyz: unknown field; Allowed: model"),
        ({"backend": {"type": "vlm"}}, "spec.backend.type: must be 'headwater', 'vllm', 'sglang', 'tgi',"),
        ({"backend": {"version": 0.32}}, "spec.backend.version: must be text, found 0.32"),
        ({"model": {"source": "ftp://x"}}, "spec.model.source: must be one of hf://OWNER/NAME, s3://BUCKET/PATH,"),
        ({"model": {}}, "spec.model.source: is required"),
        (
            {"model": {"source": "hf://o/m", "aliases": ["a", "a"]}},
            'aliases: must differ from one another; found "a"',
        ),
        (
            {"model": {"source": "hf://o/m", "aliases": ["m0"]}},
            "spec.model.aliases: must not hold the resource's own name",
        ),
        ({"quantization": "int4"}, "spec.quantization: must be 'none', 'fp8', 'awq' or 'gptq', found \"int4\""),
        ({"cache": {"fraction": 1.5}}, "spec.cache.fraction: must be less than or equal to 1, found 1.5"),
        ({"context": {"maxTokens": "4k"}}, 'spec.context.maxTokens: must be a whole number, found "4k"'),
        ({"replicas": 1, "autoscaling": {"max": 2}}, "spec.autoscaling: cannot stand beside `replicas`"),
        ({"autoscaling": {"min": 3, "max": 2}}, "spec.autoscaling.max: must be at least `min`; found 2"),
        ({"autoscaling": {"max": 2, "scaleDownDelay": "5 min"}}, "scaleDownDelay: must be a duration such as 30s"),
        ({"autoscaling": {"max": 2, "scaleDownDelay": 300}}, "scaleDownDelay: must be a duration such as 30s"),
        ({"routing": {"policy": "random"}}, "spec.routing.policy: must be 'prefix', 'round_robin', 'least_loaded' or"),
        ({"rollout": {"strategy": "auto"}}, "spec.rollout.strategy: must be 'Auto', 'Surge' or 'Replace', found"),
        (
            {"adapters": [{"name": "a", "source": "hf://o/a"}] * 2},
            'spec.adapters: must differ from one another; found "a"',
        ),
        (
            {"adapters": [{"name": "m0", "source": "hf://o/a"}]},
            "spec.adapters: must not have a name of the model itself",
        ),
        ({"adapters": [{"name": "a"}]}, "spec.adapters[0].source: is required"),
        ({"model": {"source": None}}, "spec.model.source: is required"),
        ({"resources": {"limit": {"cpu": 1}}}, "spec.resources.limit: unknown field; did you mean `limits`?"),
        ({"resources": {"limits": {"cpu": 0.5}}}, "spec.resources.limits.cpu: must be an amount such as 2, 500m or"),
        ({"resources": {"limits": {"cpu": True}}}, "spec.resources.limits.cpu: must be an amount such as 2, 500m or"),
        (
            {"backend": {"env": {"": "a"}}},
            "spec.backend.env: must be variables: letters, digits and '_', not beginning",
        ),
        ({"template": {"sepc": {}}}, "spec.template.sepc: unknown field; did you mean `spec`?"),
        ({"template": {"metadata": {"name": "x"}}}, "spec.template.metadata.name: unknown field; Allowed: labels"),
    ],
)
def test_a_mistake_is_answered_with_its_field_and_what_is_allowed(tmp_path, spec, message):
    assert message in error_of(written(tmp_path, spec))


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "dot.dot", "7b", "a" * (MAX_NAME + 1), ""])
def test_a_name_must_fit_kubernetes(tmp_path, name):
    assert "metadata.name: must be" in error_of(written(tmp_path, {}, metadata={"name": name}))


def test_a_name_may_be_as_long_as_fits(tmp_path):
    (deployment,) = load(written(tmp_path, {}, metadata={"name": "a" * MAX_NAME}))
    assert len(f"{deployment.name}-0123456789-01234") == 63


def test_a_field_that_is_null_counts_as_left_out(tmp_path):
    (deployment,) = load(written(tmp_path, {"backend": None, "replicas": None, "context": {"maxTokens": None}}))
    assert deployment.spec == Spec(model=Model(source="hf://owner/model"))


@pytest.mark.parametrize(
    ("gpus", "spec", "allowed"),
    [
        (2, {"parallelism": {"tensor": 2}}, True),
        ("2", {"parallelism": {"tensor": 4, "nodes": 2}}, True),
        (0, {"parallelism": {"tensor": 2}}, True),
        (4, {"parallelism": {"tensor": 4, "nodes": 2}}, False),
        (4, {}, False),
        (8, {"parallelism": {"tensor": 4, "pipeline": 2}}, True),
        (4, {"parallelism": {"data": 16, "pipeline": 2, "expert": True, "nodes": 8}}, True),
        (4, {"parallelism": {"data": 8}}, False),
        (4, {"parallelism": {"tensor": 2}, "backend": {"args": ["-pcp", "2"]}}, True),
        (3, {"parallelism": {"tensor": 2}, "backend": {"args": ["-pcp", "2"]}}, False),
        ("2k", {"parallelism": {"tensor": 2}}, False),
    ],
)
def test_the_gpus_of_a_pod_are_those_that_its_model_is_split_over(tmp_path, gpus, spec, allowed):
    path = written(tmp_path, {"resources": {"limits": {"nvidia.com/gpu": gpus}}} | spec)
    if allowed:
        assert load(path)
    else:
        assert "spec.resources.limits: GPUs must be `parallelism.tensor` x `pipeline` x `data` /" in error_of(path)


def test_a_duration_is_written_as_it_is_read(tmp_path):
    (deployment,) = load(written(tmp_path, {"loadTimeout": "1h30m", "drainTimeout": "90s"}))
    spec = deployment.model_dump(mode="json", by_alias=True)["spec"]
    assert (spec["loadTimeout"], spec["drainTimeout"]) == ("1h30m", "1m30s")


def test_mistakes_are_told_without_a_file_too():
    with pytest.raises(ValidationError) as caught:
        Spec.model_validate({"model": {"source": "x", "revison": "v1"}, "replicas": -1})
    told = problems(caught.value)
    assert told[0].startswith("model.revison: unknown field; did you mean `revision`?")
    assert told[1] == "replicas: must be greater than or equal to 0, found -1"


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "apiVersion: headwater.dev/v2\n"
        "kind: ModelDeployment\n"
        "metadata: {name: m}\n"
        "spec:\n"
        "  model: {source: hf://o/m}\n"
        "  adapters:\n"
        "  - name: a\n"
        "    source: hf://o/a\n"
        "  - nam: b\n"
        "  replicas: -1\n"
    )
    lines = error_of(path).splitlines()
    assert lines[0] == f"{path}:1: apiVersion: must be 'headwater.dev/v1alpha1', found \"headwater.dev/v2\""
    assert lines[1].startswith(f"{path}:10: spec.replicas: must be greater than or equal to 0, found -1")
    assert lines[2].startswith(f"{path}:9: spec.adapters[1].nam: unknown field; did you mean `name`?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", ":1: not YAML: mapping values are not allowed here"),
        ("a: \x00", "not YAML"),
        ("", "holds no ModelDeployment"),
        ("- a", ":1: the document: must be an object"),
        ("kind: Secret", ":1: kind: must be 'ModelDeployment', found \"Secret\""),
    ],
)
def test_what_is_no_resource_is_refused(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert message in error_of(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert "cannot be read: No such file" in error_of(tmp_path / "none.yaml")
    (tmp_path / "latin").write_bytes(b"name: \xe9")
    assert "cannot be read" in error_of(tmp_path / "latin")


def test_two_documents_of_one_name_are_refused(tmp_path):
    assert 'found "same" twice' in error_of(written(tmp_path, {}, {}, metadata={"name": "same"}))


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path):
    assert all(isinstance(each, ModelDeployment) for each in load(path))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize(
    ("image", "good"),
    [
        ("vllm", True),
        ("engine:1", True),
        ("localhost/headwater-router:1", True),
        ("registry.example.com:5000/team/v_l-l--m/x.y:v0.3.2_cu12", True),
        ("REGISTRY.example.com/team/vllm", True),
        ("[fd00::1]:5000/vllm:v1", True),
        ("myhost:5000/vllm@sha256:" + "a" * 64, True),
        ("vllm:v1@sha256:" + "0" * 64, True),
        ("registry.example.com/Team/vllm", False),
        ("vLLM:v1", False),
        ("Team/vllm", False),
        ("team//vllm", False),
        ("vllm:", False),
        ("-vllm", False),
        ("https://registry.example.com/vllm", False),
    ],
)
def test_an_image_is_one_that_a_registry_can_have(tmp_path: Path, image: str, good: bool) -> None:
    path = written(tmp_path, {"backend": {"image": image}})
    if good:
        load(path)
    else:
        assert "must be an image such as REGISTRY/NAME:TAG, its path in lowercase" in error_of(path)
