"""The store shows the newest state it was told of, however often and in which order, and its index never lies."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.kubernetes import LABEL_DEPLOYMENT
from headwater_operator.cluster.kinds import DEPLOYMENT, POD, Key, Kind, Object, labels_of
from headwater_operator.watch.store import Store

KEY = Key("default", "m")


def an_object(
    version: int,
    *,
    uid: str = "1",
    name: str = "x",
    kind: Kind = POD,
    namespace: str = "default",
    deployment: str | None = "m",
) -> Object:
    metadata: dict[str, Any] = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(version)}
    if deployment is not None:
        metadata["labels"] = {LABEL_DEPLOYMENT: deployment}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}


def version_of(store: Store) -> tuple[str, int] | None:
    found = store.get(POD, "default", "x")
    return (found["metadata"]["uid"], int(found["metadata"]["resourceVersion"])) if found else None


@given(st.permutations(range(8, 13)), st.lists(st.integers(8, 12)))
def test_states_may_come_in_any_order_and_more_than_once(order: list[int], again: list[int]) -> None:
    store = Store()
    for at, version in enumerate(order + again):
        news = store.put(an_object(version))
        seen = (order + again)[:at]
        assert news == all(version > each for each in seen), "news is what is newer, and nothing else"
    assert version_of(store) == ("1", 12)


def test_versions_are_compared_as_numbers() -> None:
    store = Store()
    store.put(an_object(9))
    assert store.put(an_object(10))
    assert not store.put(an_object(9))


def test_an_object_that_took_the_name_is_another_one() -> None:
    store = Store()
    store.put(an_object(5, deployment="m"))
    assert store.put(an_object(7, uid="2", deployment="other"))
    assert store.of(KEY, POD) == []
    assert version_of(store) == ("2", 7)


def test_the_end_of_an_earlier_life_does_not_touch_the_later() -> None:
    store = Store()
    store.put(an_object(7, uid="2"))
    assert not store.remove(an_object(6, uid="1"))
    assert version_of(store) == ("2", 7)
    assert store.remove(an_object(8, uid="2"))
    assert not store.remove(an_object(8, uid="2"))
    assert version_of(store) is None and store.of(KEY, POD) == []


def test_a_late_answer_does_not_bring_back_what_is_gone() -> None:
    store = Store()
    store.put(an_object(5))
    store.remove(an_object(7))
    assert not store.put(an_object(6))
    assert version_of(store) is None
    store.replace(POD, None, [an_object(5)], 6)
    assert version_of(store) is None, "nor does a list from before"


def test_an_end_may_be_told_before_what_it_ended() -> None:
    store = Store()
    assert not store.remove(an_object(7))
    assert not store.put(an_object(6))


def test_what_a_list_misses_had_ended_when_it_was_made() -> None:
    store = Store()
    store.put(an_object(5))
    store.replace(POD, None, [], 8)
    assert not store.put(an_object(7)) and store.put(an_object(9, uid="2"))


def test_what_lost_its_label_is_there_again_when_it_gets_it_back() -> None:
    """A watch with a selector tells that as an end, and then as a state, of one and the same object."""
    store = Store()
    store.put(an_object(5))
    assert store.remove(an_object(6))
    assert store.put(an_object(7)) and version_of(store) == ("1", 7)


def test_a_late_word_of_an_earlier_life_does_not_hide_the_later() -> None:
    """kopf has one worker for each life, so these come in any order."""
    store = Store()
    store.put(an_object(5, uid="1"))
    store.put(an_object(8, uid="2"))
    assert not store.put(an_object(6, uid="1"))
    assert not store.remove(an_object(7, uid="1"))
    assert version_of(store) == ("2", 8)


@given(st.permutations([(1, 5, "put"), (1, 6, "put"), (1, 7, "remove"), (2, 8, "put"), (2, 9, "put")]))
def test_any_order_ends_in_the_newest_state(order: list[tuple[int, int, str]]) -> None:
    store = Store()
    for life, version, what in order:
        getattr(store, what)(an_object(version, uid=str(life)))
    assert version_of(store) == ("2", 9)


def test_only_so_many_ends_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater_operator.watch.store._ENDS", 2)
    store = Store()
    for name in "abca":
        store.remove(an_object(5, name=name))
    assert [name for name in "abc" if not store.put(an_object(4, name=name))] == ["a", "c"]


def test_a_list_makes_up_for_what_a_watch_missed() -> None:
    store = Store()
    for name in ("gone", "same", "older", "newer"):
        store.put(an_object(5, name=name))
    store.put(an_object(5, name="replaced"))
    elsewhere = an_object(5, name="gone", namespace="other")
    another = an_object(5, name="gone", kind=DEPLOYMENT)
    store.put(elsewhere)
    store.put(another)
    listed = [
        an_object(5, name="same"),
        an_object(4, name="older"),
        an_object(6, name="newer"),
        an_object(6, name="replaced", uid="2"),
        an_object(6, name="missed"),
    ]
    changed = store.replace(POD, "default", listed, 6)
    assert sorted(each["metadata"]["name"] for each in changed) == ["gone", "missed", "newer", "replaced"]
    names = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in store.of(KEY, POD)}
    assert names == {"same": "5", "older": "5", "newer": "6", "replaced": "6", "missed": "6"}
    assert store.of(Key("other", "m"), POD) == [elsewhere]
    assert store.of(KEY, DEPLOYMENT) == [another]
    assert store.replace(POD, None, [], 6) and list(store.all(POD)) == []


def test_what_was_told_since_the_list_is_not_undone_by_it() -> None:
    store = Store()
    store.put(an_object(5))
    store.put(an_object(8, name="made since"))
    store.put(an_object(9, name="changed since"))
    assert store.replace(POD, None, [an_object(5), an_object(6, name="changed since")], 7) == []
    assert [each["metadata"]["resourceVersion"] for each in store.of(KEY, POD)] == ["9", "8", "5"]


MANIFESTS = st.builds(
    an_object,
    st.integers(1, 9),
    uid=st.sampled_from("12"),
    name=st.sampled_from("ab"),
    kind=st.sampled_from([POD, DEPLOYMENT]),
    namespace=st.sampled_from(["default", "other"]),
    deployment=st.sampled_from([None, "m", "n"]),
)
STEPS = st.one_of(
    st.tuples(st.just("put"), MANIFESTS),
    st.tuples(st.just("remove"), MANIFESTS),
    st.tuples(
        st.just("replace"),
        st.tuples(
            st.sampled_from([POD, DEPLOYMENT]), st.sampled_from([None, "default"]), st.lists(MANIFESTS, max_size=4)
        ),
    ),
)


@given(st.lists(STEPS, max_size=25))
def test_the_index_agrees_with_a_scan_of_everything(steps: list[tuple[str, Any]]) -> None:
    store = Store()
    for step, what in steps:
        if step == "replace":
            kind, namespace, manifests = what
            store.replace(
                kind,
                namespace,
                [
                    each
                    for each in manifests
                    if each["kind"] == kind.name and namespace in (None, each["metadata"]["namespace"])
                ],
                version=5,
            )
        else:
            getattr(store, step)(what)
        for kind in (POD, DEPLOYMENT):
            everything = list(store.all(kind))
            for key in (Key(namespace, name) for namespace in ("default", "other") for name in "mn"):
                scanned = [
                    each
                    for each in everything
                    if each["metadata"]["namespace"] == key.namespace
                    and labels_of(each).get(LABEL_DEPLOYMENT) == key.name
                ]
                assert store.of(key, kind) == sorted(scanned, key=lambda each: str(each["metadata"]["name"]))


@pytest.mark.parametrize("kind", [POD, DEPLOYMENT])
def test_what_has_no_objects_is_empty(kind: Kind) -> None:
    store = Store()
    assert store.of(KEY, kind) == [] and list(store.all(kind)) == []
    assert store.get(kind, "default", "x") is None and not store.remove(an_object(1, kind=kind))
