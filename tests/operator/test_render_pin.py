"""What restarts an engine: a change of the spec that shapes its pod, and nothing else."""

import json
import re
from typing import Any

import pytest
from hypothesis import given

from headwater import backends
from headwater.backends.base import UnsupportedError
from headwater.resource import ModelDeployment, ResourceError
from headwater_operator.config import KVEvents, OperatorSettings
from headwater_operator.render import (
    PIN_ANNOTATION,
    RENDERERS,
    SPEC_HASH_ANNOTATION,
    Defaults,
    Pin,
    pinned,
    render,
    revision,
    spec_hash,
    wanted_pin,
)
from headwater_operator.render.names import build_name
from tests.operator.rendering import BACKENDS, context, deployment, deployments

OLD = Pin(1, "vllm", "vllm/vllm-openai:v0.32.0")
NEW = Pin(2, "headwater", "headwater-engine:9")


def settings(**given: Any) -> OperatorSettings:
    return OperatorSettings(**{"engine_image": "headwater-engine:1", **given})


@pytest.mark.parametrize(
    "fields",
    [
        {"replicas": 5},
        {"autoscaling": {"min": 0, "max": 8}},
        {"routing": {"policy": "session", "weight": 1}},
        {"rollout": {"strategy": "Replace", "paused": True}},
        {"weights": {"size": "1Ti", "keep": False, "storageClassName": "fast", "accessMode": "ReadWriteMany"}},
        {"cache": {"fraction": 0.9, "dtype": "auto"}},
        {"drainTimeout": "2m"},
        {"drainTimeout": "120s", "loadTimeout": "60m"},
    ],
)
def test_what_does_not_shape_pods_changes_no_hash(fields: dict[str, Any]) -> None:
    assert spec_hash(deployment("vllm", **fields).spec) == spec_hash(deployment("vllm").spec)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"revision": "v2"}},
        {"model": {"aliases": ["a"]}},
        {"model": {"secretRef": {"name": "hub"}}},
        {"backend": {"image": "i"}},
        {"backend": {"args": ["--x"]}},
        {"backend": {"env": {"A": "b"}}},
        {"parallelism": {"tensor": 2}},
        {"resources": {"limits": {"cpu": 1}}},
        {"context": {"maxTokens": 1}},
        {"quantization": "fp8"},
        {"cache": {"fraction": 0.5}},
        {"adapters": [{"name": "a", "source": "hf://o/a"}]},
        {"weights": {"cached": False}},
        {"loadTimeout": "2h"},
        {"drainTimeout": "1m"},
        {"template": {"spec": {"nodeSelector": {"a": "b"}}}},
    ],
)
def test_what_shapes_pods_changes_the_hash(fields: dict[str, Any]) -> None:
    assert spec_hash(deployment("vllm", **fields).spec) != spec_hash(deployment("vllm").spec)


@pytest.mark.parametrize(("backend", "same"), [("vllm", True), ("sglang", True), ("auto", True), ("tgi", False)])
def test_which_adapters_there_are_matters_only_to_servers_that_load_them_at_their_start(
    backend: str, same: bool
) -> None:
    one = deployment(backend, adapters=[{"name": "a", "source": "hf://o/a"}])
    two = deployment(backend, adapters=[{"name": name, "source": f"hf://o/{name}"} for name in "ab"])
    assert (spec_hash(one.spec) == spec_hash(two.spec)) is same


def test_a_pin_is_kept_until_the_spec_changes() -> None:
    notes = {PIN_ANNOTATION: OLD.to_json(), SPEC_HASH_ANNOTATION: "same"}
    assert pinned(notes, "same") == OLD
    assert pinned(notes, "after") is None
    assert pinned({}, "first") is None
    assert pinned(notes | {PIN_ANNOTATION: "damaged"}, "same") is None


def test_a_pin_survives_its_annotation() -> None:
    assert Pin.from_json(OLD.to_json()) == OLD


@pytest.mark.parametrize("damaged", ["x", "[]", '{"env": 1}', '{"other": {}}'])
def test_a_pin_whose_defaults_are_damaged_is_a_value_error(damaged: str) -> None:
    text = json.dumps({"render_version": 5, "backend": "vllm", "image": "i", "defaults": damaged})
    with pytest.raises(ValueError, match=r"."):
        Pin.from_json(text)


def test_what_a_platform_gives_survives_its_pin() -> None:
    given = Defaults({"A": "1"}, {"spec": {"nodeSelector": {"a": "b"}}})
    pin = Pin(5, "vllm", "image:1", one_node=True, defaults=given.to_json())
    assert Pin.from_json(pin.to_json()) == pin and Defaults.pinned(pin.defaults) == given


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"render_version": "1", "backend": "vllm", "image": "i"}'])
def test_a_damaged_pin_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Pin.from_json(text)


@given(deployments())
def test_a_revision_follows_from_spec_and_pin(wanted: ModelDeployment) -> None:
    pin = context(wanted).pin
    assert revision(wanted, pin) == revision(wanted, pin)
    assert revision(wanted, pin) != revision(wanted, NEW)
    assert len(revision(wanted, pin)) == 10


@given(deployments(most_nodes=1))
def test_the_selector_is_the_same_for_any_spec(wanted: ModelDeployment) -> None:
    """Kubernetes would refuse another one: the Deployment would have to be made anew, and all its pods with it."""
    workload = next(each for each in render(wanted, context(wanted)) if each["kind"] == "Deployment")
    assert workload["spec"]["selector"] == {
        "matchLabels": {"headwater.dev/deployment": wanted.name, "app.kubernetes.io/component": "engine"}
    }


def test_pods_of_a_newer_operator_are_left_alone() -> None:
    wanted = deployment("vllm")
    with pytest.raises(ResourceError, match="a newer operator, in render version 99"):
        render(wanted, context(wanted, version=99))


def test_an_engine_is_built_anew_only_for_what_shapes_it() -> None:
    args = {"args": ["--backend", "tensorrt"]}
    first = deployment("tensorrt-llm", backend=args)
    same = deployment("tensorrt-llm", backend=args, drainTimeout="9m", resources={"limits": {"cpu": 9}})
    other = deployment("tensorrt-llm", backend=args, context={"maxTokens": 9})
    pin = context(first).pin
    assert build_name(first, pin) == build_name(same, pin) != build_name(other, pin)


def test_a_new_render_version_builds_no_engine_anew() -> None:
    """Which takes half an hour of a GPU, of each replica's kind."""
    wanted = deployment("tensorrt-llm", backend={"args": ["--backend", "tensorrt"]})
    names = {build_name(wanted, Pin(version, "tensorrt-llm", "image:1")) for version in RENDERERS}
    assert len(names) == 1


# KV events and the admin key


@pytest.mark.parametrize("backend", ["headwater", "vllm", "sglang"])
@pytest.mark.parametrize(
    ("kv_events", "policy", "publishes"),
    [("prefix", "prefix", True), ("prefix", "session", False), ("never", "prefix", False)],
)
def test_events_are_published_where_a_router_would_read_them(
    backend: str, kv_events: KVEvents, policy: str, publishes: bool
) -> None:
    wanted = deployment(backend, routing={"policy": policy})
    assert wanted_pin(wanted, backend, settings(kv_events=kv_events)).publishes_kv_events is publishes


@pytest.mark.parametrize("backend", ["tgi", "tensorrt-llm", "transformers"])
def test_a_server_that_has_no_events_publishes_none(backend: str) -> None:
    wanted = deployment(backend, backend={"image": "server:1"})
    assert not wanted_pin(wanted, backend, settings(kv_events="prefix")).publishes_kv_events


def test_a_pin_from_before_there_was_a_choice_stays_to_the_letter_and_means_what_it_did() -> None:
    before = '{"backend": "vllm", "image": "vllm/vllm-openai:v0.32.0", "render_version": 1}'
    pin = Pin.from_json(before)
    assert pin.publishes_kv_events and not pin.asks_for_admin_key
    assert pin.to_json() == before, "revisions are made of it"


def test_that_no_events_are_published_is_pinned() -> None:
    pin = Pin(2, "vllm", "image:1", kv_events=False)
    assert Pin.from_json(pin.to_json()) == pin
    assert revision(deployment("vllm"), pin) != revision(deployment("vllm"), Pin(2, "vllm", "image:1"))


# Images


@pytest.mark.parametrize("backend", ["headwater", "vllm", "sglang"])
def test_a_default_image_names_a_version_and_no_registry(backend: str) -> None:
    image = wanted_pin(deployment(backend), backend, settings()).image
    name, _, tag = image.partition(":")
    assert tag and "." not in name and tag != "latest"


@pytest.mark.parametrize("backend", ["tgi", "tensorrt-llm", "transformers"])
def test_an_image_that_cannot_be_known_is_asked_for(backend: str) -> None:
    with pytest.raises(
        UnsupportedError, match=r"spec\.backend\.image: .* has no default image: it is [\w/.-]+:[\w.]+, of a registry"
    ):
        wanted_pin(deployment(backend), backend, settings())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_image_of_the_spec_wins(backend: str) -> None:
    wanted = deployment(backend, backend={"image": "my/own:1"})
    assert wanted_pin(wanted, backend, settings()).image == "my/own:1"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (None, "vllm/vllm-openai:v9"),
        ("server", "server:v9"),
        ("host:5000/team/server:v1", "host:5000/team/server:v9"),
        ("host:5000/server", "host:5000/server:v9"),
    ],
)
def test_a_version_takes_the_place_of_the_tag(image: str | None, expected: str) -> None:
    wanted = deployment("vllm", backend={"image": image, "version": "v9"})
    assert wanted_pin(wanted, "vllm", settings()).image == expected


def test_a_digest_takes_the_place_of_the_tag_too() -> None:
    digest = f"sha256:{'0' * 64}"
    wanted = deployment("vllm", backend={"image": "host:5000/server:v1", "version": digest})
    assert wanted_pin(wanted, "vllm", settings()).image == f"host:5000/server@{digest}"


def test_the_images_that_a_platform_has_pinned_are_below_those_of_a_resource() -> None:
    pinned_images = settings(backend_images={"vllm": "mirror/vllm:v1", "tgi": "mirror/tgi:3"})
    assert wanted_pin(deployment("tgi"), "tgi", pinned_images).image == "mirror/tgi:3"
    own = deployment("vllm", backend={"image": "own:1"})
    assert wanted_pin(own, "vllm", pinned_images).image == "own:1"
    assert wanted_pin(deployment("vllm", backend={"version": "v2"}), "vllm", pinned_images).image == "mirror/vllm:v2"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_platform_says_a_registry_and_gets_the_pinned_image_of_it(backend: str) -> None:
    made = wanted_pin(deployment(backend), backend, settings(backend_registries={backend: "mirror.internal:5000/all"}))
    assert re.fullmatch(r"mirror\.internal:5000/all/[\w/-]+:v?[\d.]+", made.image)
    plain = settings(backend_registries={other: "mirror" for other in BACKENDS if other != backend})
    known = backends.get(backend).image if backend != "headwater" else "headwater-engine:1"
    if known is not None:
        assert made.image == f"mirror.internal:5000/all/{known}"
        assert wanted_pin(deployment(backend), backend, plain).image == known
    pinned = settings(backend_registries={backend: "mirror"}, backend_images={backend: "own:1"})
    assert wanted_pin(deployment(backend), backend, pinned).image == "own:1"
    named = deployment(backend, backend={"image": "mine:2"})
    assert wanted_pin(named, backend, settings(backend_registries={backend: "mirror"})).image == "mine:2"


@pytest.mark.parametrize(
    "image", ["registry.example.com/team/engine:9", "localhost/team/engine:9", "r:5000/team/engine:9"]
)
def test_a_mirror_takes_the_place_of_the_registry_that_an_image_names(image: str) -> None:
    mirrored = settings(engine_image=image, backend_registries={"headwater": "mirror"})
    assert wanted_pin(deployment(), "headwater", mirrored).image == "mirror/team/engine:9"


def test_a_version_beside_a_digest_is_refused() -> None:
    wanted = deployment("vllm", backend={"image": "server@sha256:0", "version": "v9"})
    with pytest.raises(UnsupportedError, match=r"spec\.backend\.version"):
        wanted_pin(wanted, "vllm", settings())


@pytest.mark.parametrize(
    ("image", "revision", "cached", "refused"),
    [
        ("host:5000/tensorrt-llm/release:1.1.0", "v2", False, True),
        ("host:5000/tensorrt-llm/release:0.21.0rc2", "v2", False, True),
        ("host:5000/tensorrt-llm/release:1.1.0", "v2", True, False),
        ("host:5000/tensorrt-llm/release:1.1.0", "main", False, False),
        ("host:5000/tensorrt-llm/release:1.2.0rc5", "v2", False, False),
        ("host:5000/tensorrt-llm/release:latest", "v2", False, False),
        (f"host:5000/tensorrt-llm/release@sha256:{'0' * 64}", "v2", False, False),
    ],
)
def test_a_version_that_knows_no_revisions_is_not_asked_to_fetch_one(
    image: str, revision: str, cached: bool, refused: bool
) -> None:
    wanted = deployment(
        "tensorrt-llm", backend={"image": image}, model={"revision": revision}, weights={"cached": cached}
    )
    if refused:
        with pytest.raises(UnsupportedError, match=r"spec\.model\.revision: .* needs version 1\.2"):
            wanted_pin(wanted, "tensorrt-llm", settings())
    else:
        assert wanted_pin(wanted, "tensorrt-llm", settings()).image == image
