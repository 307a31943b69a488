"""`spec.template` is merged into a pod as a user of Kubernetes expects."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_operator.render.template import merge
from headwater_operator.render.versions import pod_template
from tests.operator.rendering import context, deployment, engine, env_of

_NAMES = st.sampled_from(["a", "b", "c"])
_LEAVES = st.none() | st.integers() | _NAMES


def _named(field: str, more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.builds(lambda name, rest: {**rest, field: name}, _NAMES, st.dictionaries(st.just("more"), more))
    return st.lists(items, unique_by=lambda item: item[field], max_size=3)


_PARTS = st.fixed_dictionaries(
    {},
    optional={
        "containers": _named("name", _LEAVES | st.dictionaries(_NAMES, _LEAVES)),
        "env": _named("name", _LEAVES),
        "volumeMounts": _named("mountPath", _LEAVES),
        "tolerations": st.lists(st.dictionaries(_NAMES, st.integers()), max_size=3),
        "args": st.lists(_NAMES),
        "a": _LEAVES,
        "nested": st.recursive(st.dictionaries(_NAMES, _LEAVES), lambda inner: st.dictionaries(_NAMES, inner)),
    },
)


def _without_nulls(value: Any) -> Any:
    """A rendered template has none."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


_RENDERED = _PARTS.map(_without_nulls)


@given(_RENDERED)
def test_merging_nothing_changes_nothing(base: Any) -> None:
    assert merge(base, {}) == base


@given(_RENDERED, _PARTS)
def test_merging_twice_is_merging_once(base: Any, patch: Any) -> None:
    once = merge(base, patch)
    assert merge(once, patch) == once


@given(_RENDERED, _PARTS)
def test_what_is_merged_stays_as_it_was(base: Any, patch: Any) -> None:
    before = deepcopy((base, patch))
    merge(base, patch)
    assert (base, patch) == before


@given(_RENDERED, _PARTS)
def test_no_null_is_left(base: Any, patch: Any) -> None:
    merged = merge(base, patch)
    assert merged == _without_nulls(merged)


@given(_RENDERED, _RENDERED)
def test_what_the_patch_says_holds(base: Any, patch: Any) -> None:
    merged = merge(base, patch)
    for field in patch.keys() & {"args", "a"}:
        assert merged[field] == patch[field]
    for item in patch.get("env", []):
        assert item in merged["env"]
    for item in patch.get("tolerations", []):
        assert item in merged["tolerations"]


def merged(template: dict[str, Any]) -> dict[str, Any]:
    wanted = deployment("vllm", template=template)
    return pod_template(wanted, context(wanted))


def test_a_container_of_ones_own_stands_beside_the_engine() -> None:
    pod = merged({"spec": {"containers": [{"name": "logs", "image": "logs:1"}]}})["spec"]
    assert [container["name"] for container in pod["containers"]] == ["engine", "logs"]


def test_the_engine_is_changed_by_its_name() -> None:
    patch = {"name": "engine", "env": [{"name": "HOME", "value": "/elsewhere"}], "resources": {"limits": {"cpu": 3}}}
    container = engine(merged({"spec": {"containers": [patch]}}))
    assert env_of(container)["HOME"] == "/elsewhere"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1", "cpu": 3}}


def test_a_variable_becomes_one_of_another_kind() -> None:
    reference = {"secretKeyRef": {"name": "s", "key": "k"}}
    patch = {"name": "engine", "env": [{"name": "HOME", "valueFrom": reference}]}
    entry = next(each for each in engine(merged({"spec": {"containers": [patch]}}))["env"] if each["name"] == "HOME")
    assert entry == {"name": "HOME", "valueFrom": reference}


def test_a_null_takes_away() -> None:
    assert "topologySpreadConstraints" not in merged({"spec": {"topologySpreadConstraints": None}})["spec"]


def test_tolerations_come_on_top() -> None:
    own = {"key": "team", "operator": "Exists"}
    assert merged({"spec": {"tolerations": [own]}})["spec"]["tolerations"][1:] == [own]


@pytest.mark.parametrize("label", ["headwater.dev/deployment", "headwater.dev/revision", "app.kubernetes.io/component"])
def test_the_labels_that_selectors_depend_on_stay(label: str) -> None:
    labels = merged({"metadata": {"labels": {label: "mine", "team": "a"}}})["metadata"]["labels"]
    assert labels["team"] == "a" and labels[label] != "mine"
