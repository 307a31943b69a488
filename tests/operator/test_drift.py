"""An object is never different from what became of it in the API server, and every change that matters is found."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_operator.reconcile.drift import differences

NAMES = st.sampled_from(["name", "image", "env", "ports", "limits", "labels"])
LEAVES = st.one_of(st.integers(1, 9), st.just(True), st.sampled_from(["a", "b", "1"]))
EMPTY: st.SearchStrategy[Any] = st.sampled_from([None, False, 0, "", {}, []])


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.dictionaries(NAMES, inner, max_size=4) | st.lists(inner, max_size=3),
        max_leaves=12,
    )


OBJECTS = st.dictionaries(NAMES, trees(LEAVES), min_size=1)
LOOSE_OBJECTS = st.dictionaries(NAMES, trees(LEAVES | EMPTY), min_size=1)


def defaulted(rendered: Any, data: st.DataObject) -> Any:
    """As a server gives it back: fields added everywhere, and now and then an empty one left out."""
    match rendered:
        case dict():
            kept = {
                name: defaulted(value, data) for name, value in rendered.items() if value or data.draw(st.booleans())
            }
            return kept | data.draw(st.dictionaries(st.sampled_from(["uid", "defaultMode"]), trees(LEAVES), max_size=1))
        case list():
            return [defaulted(each, data) for each in rendered]
        case _:
            return rendered


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The path of each, with what holds it and under which key."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        here = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else str(key)
        if isinstance(value, dict | list):
            yield from leaves(value, here)
        else:
            yield here, tree, key


@settings(max_examples=40)
@given(LOOSE_OBJECTS, st.data())
def test_what_the_server_adds_is_no_difference(rendered: dict[str, Any], data: st.DataObject) -> None:
    live = defaulted(rendered, data)
    assert differences(rendered, live) == []


@given(OBJECTS, st.data())
def test_every_changed_leaf_is_found_and_nothing_else(rendered: dict[str, Any], data: st.DataObject) -> None:
    live = copy.deepcopy(rendered)
    found = list(leaves(live))
    changed = data.draw(st.lists(st.sampled_from(range(len(found))), unique=True)) if found else []
    for each in changed:
        _, holder, key = found[each]
        # What is in a list cannot be left out, which would make it another list.
        others = st.sampled_from(["changed", 77, None, {"x": 1}, [1]])
        if isinstance(holder, dict) and data.draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = data.draw(others)
    assert differences(rendered, live) == [found[each][0] for each in sorted(changed)]


@given(OBJECTS, st.data())
def test_a_list_that_became_longer_or_shorter_is_found(rendered: dict[str, Any], data: st.DataObject) -> None:
    rendered["args"] = data.draw(st.lists(LEAVES, min_size=1))
    live = copy.deepcopy(rendered)
    live["args"] = data.draw(st.sampled_from([[*live["args"], "--more"], live["args"][1:], None, "text"]))
    assert differences(rendered, live) == ["args"]


@pytest.mark.parametrize(
    ("rendered", "live", "found"),
    [
        ({"spec": {"replicas": 2}}, {"spec": {"replicas": 3, "paused": False}}, ["spec.replicas"]),
        ({"spec": {"replicas": 0}}, {"spec": {"replicas": 3}}, ["spec.replicas"]),
        ({"spec": {"paused": False}}, {"spec": {"paused": True}}, ["spec.paused"]),
        ({"spec": {"paused": False}}, {"spec": {}}, []),
        ({"ports": [{"port": 80}]}, {"ports": [{"port": 81, "protocol": "TCP"}]}, ["ports[0].port"]),
        ({"args": ["a", "b"]}, {"args": ["b", "a"]}, ["args[0]", "args[1]"]),
        ({"emptyDir": {}}, {"emptyDir": {}}, []),
        ({"emptyDir": {}}, {}, []),
        ({"finalizers": []}, {"finalizers": ["x"]}, ["finalizers"]),
        ({"labels": {"a": "1"}}, {"labels": None}, ["labels"]),
        ({"value": "1"}, {"value": 1}, ["value"]),
    ],
)
def test_examples(rendered: dict[str, Any], live: dict[str, Any], found: list[str]) -> None:
    assert differences(rendered, live) == found
