"""Deployments and contexts for the tests of render, by hand and by hypothesis."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from headwater.resource import ModelDeployment
from headwater_operator.render import CURRENT_RENDER_VERSION, Context, Manifest, Pin, WeightsVolume, build_name

WEIGHTS = WeightsVolume("weights-0123456789abcdef", "/models/model")
BACKENDS = ["headwater", "vllm", "sglang", "tgi", "tensorrt-llm", "transformers"]


def deployment(server: str = "headwater", source: str = "hf://owner/model", **spec: Any) -> ModelDeployment:
    model = {"source": source, **spec.pop("model", {})}
    if server == "transformers" and source == "hf://owner/model":
        model.setdefault("aliases", ["owner/model"])
    return ModelDeployment.model_validate(
        {
            "apiVersion": "headwater.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": spec.pop("name", "m")},
            "spec": {"model": model, "backend": {"type": server, **spec.pop("backend", {})}, **spec},
        }
    )


def context(wanted: ModelDeployment, version: int = CURRENT_RENDER_VERSION, **fields: Any) -> Context:
    pin = Pin(version, wanted.spec.backend.type, "repository/server:pinned", fields.pop("kv_events", True))
    made = Context(
        namespace="models",
        uid="00000000-0000-0000-0000-000000000000",
        pin=pin,
        weights=None,
        build_claim=None,
        strategy="Surge",
        replicas=wanted.spec.first_replicas,
        paused=False,
    )
    return replace(made, **fields)


def built(wanted: ModelDeployment, made: Context) -> Context:
    return replace(made, build_claim=build_name(wanted, made.pin))


def engine(template: Manifest) -> Manifest:
    """The container of the server."""
    container: Manifest = next(each for each in template["spec"]["containers"] if each["name"] == "engine")
    return container


def env_of(container: Manifest) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,43}[a-z0-9])?", fullmatch=True)


@st.composite
def deployments(draw: st.DrawFn, most_nodes: int = 4) -> ModelDeployment:
    """What vLLM and SGLang can serve: they can do the most."""
    nodes = draw(st.integers(1, most_nodes))
    return deployment(
        draw(st.sampled_from(["vllm", "sglang"])),
        name=draw(NAMES.filter(lambda name: name != "small")),
        model={"revision": draw(st.sampled_from(["main", "v1"])), "aliases": draw(st.sampled_from([[], ["small"]]))},
        replicas=draw(st.integers(0, 12)),
        parallelism={"tensor": nodes * draw(st.integers(1, 8)), "nodes": nodes},
        quantization=draw(st.sampled_from(["none", "fp8", "awq"])),
        cache={"fraction": draw(st.sampled_from([0.5, 0.9])), "hostGiB": draw(st.sampled_from([0.0, 8.0]))},
        drainTimeout=draw(st.sampled_from(["0s", "1s", "2m", "1h"])),
        loadTimeout=draw(st.sampled_from(["10s", "1h", "12h"])),
        adapters=draw(st.sampled_from([[], [{"name": "sql", "source": "hf://owner/sql"}]])),
        routing={"weight": draw(st.integers(0, 100))},
        template=draw(st.sampled_from([{}, {"spec": {"nodeSelector": {"gpu": "h100"}}}])),
    )
