"""Whose a name is: the namespace's that had it first, whatever others write into their resources."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.names import Claimant, Claims, claims, qualified, read, record

OLD, MID, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"


def owner(name: str, *claimants: Claimant) -> str:
    return claims(claimants).owners[name]


def test_of_two_resources_of_one_name_the_older_has_it() -> None:
    first, second = Claimant("z", "m", created=OLD), Claimant("a", "m", created=NEW)
    found = claims([second, first])
    assert found.owners["m"] == "z"
    assert found.losers == {("a", "m"): {"m": "z"}}
    assert (found.serves("z", "m"), found.serves("a", "m")) == (True, False)


def test_an_alias_takes_no_name_of_another_resource_however_old_it_is() -> None:
    assert owner("m", Claimant("a", "thief", ("m",), OLD), Claimant("z", "m", created=NEW)) == "z"


def test_of_two_aliases_the_older_resource_has_it() -> None:
    assert owner("fast", Claimant("a", "m", ("fast",), NEW), Claimant("z", "n", ("fast",), OLD)) == "z"


def test_an_alias_that_is_added_to_an_old_resource_takes_nothing_from_who_has_it() -> None:
    holder = Claimant("z", "m", ("fast",), NEW, held={"m": NEW, "fast": NEW})
    assert owner("fast", Claimant("a", "old", ("fast",), OLD), holder) == "z"
    assert owner("fast", Claimant("a", "fast", created=OLD), holder) == "z", "nor does a resource that is called so"


def test_what_is_no_longer_asked_for_is_free_though_the_status_still_has_it() -> None:
    was = Claimant("z", "m", created=OLD, held={"m": OLD, "fast": OLD})
    assert owner("fast", was, Claimant("a", "n", ("fast",), NEW)) == "a"


def test_of_two_that_have_it_both_the_earlier_keeps_it() -> None:
    holders = (Claimant("a", "m", created=OLD, held={"m": NEW}), Claimant("z", "m", created=NEW, held={"m": MID}))
    assert owner("m", *holders) == "z"


def test_of_two_of_one_age_the_namespaces_order_decides() -> None:
    assert owner("m", Claimant("b", "m", created=OLD), Claimant("a", "m", created=OLD)) == "a"


@pytest.mark.parametrize("odd", ["", "yesterday", "2024-13-01T00:00:00Z"])
def test_a_resource_without_a_time_is_younger_than_one_that_has_one(odd: str) -> None:
    assert owner("m", Claimant("a", "m", created=odd), Claimant("z", "m", created=NEW)) == "z"


def test_within_a_namespace_names_may_be_shared() -> None:
    found = claims([Claimant("a", "m", ("fast",), OLD), Claimant("a", "n", ("fast",), NEW)])
    assert found.losers == {}
    assert found.serves("a", "fast")


def test_the_owner_may_share_and_nobody_else() -> None:
    own = Claimant("z", "m", created=OLD)
    guest = Claimant("a", "n", ("m",), OLD, shared_with=("a", "b"))
    assert not claims([own, guest]).serves("a", "m"), "a guest cannot let itself in"
    shared = claims([replace(own, shared_with=("a",)), guest])
    assert shared.losers == {}
    assert [shared.serves(namespace, "m") for namespace in ("z", "a", "b")] == [True, True, False]
    assert shared.owners["m"] == "z"
    assert claims([replace(own, shared_with=("*",)), guest]).serves("b", "m")


def test_what_is_shared_is_not_recorded_and_ends_with_the_sharing() -> None:
    own = Claimant("z", "m", created=OLD, shared_with=("a",))
    guest = Claimant("a", "n", ("m",), OLD)
    assert record(guest, claims([own, guest]), NEW) == [{"name": "n", "since": NEW}]
    assert not claims([replace(own, shared_with=()), guest]).serves("a", "m")


def test_a_record_keeps_the_time_since_when_a_name_is_held() -> None:
    holder = Claimant("z", "m", ("fast",), OLD, held={"m": MID, "gone": OLD})
    assert record(holder, claims([holder]), NEW) == [{"name": "m", "since": MID}, {"name": "fast", "since": NEW}]


def test_a_namespace_and_a_name_always_mean_what_is_there() -> None:
    thief = Claimant("a", "n", ("z/m", "z/fast"), OLD, held={"z/m": OLD, "z/fast": OLD})
    found = claims([thief, Claimant("z", "m", ("fast",), NEW)])
    assert (found.owners["z/m"], found.owners["z/fast"]) == ("z", "z")
    assert found.losers == {("a", "n"): {"z/m": "z", "z/fast": "z"}}


def test_a_name_with_a_slash_that_is_no_namespaces_is_a_name_like_any_other() -> None:
    assert owner("meta-llama/Llama-3", Claimant("a", "m", ("meta-llama/Llama-3",), OLD)) == "a"


def test_a_name_that_no_resource_asks_for_is_kept_from_nobody() -> None:
    assert claims([Claimant("a", "m")]).serves("b", "other")


def test_a_claimant_is_read_off_what_the_api_server_sends() -> None:
    each = {
        "metadata": {"name": "m", "namespace": "team", "creationTimestamp": OLD},
        "spec": {
            "model": {"source": "hf://a/b", "aliases": ["fast"]},
            "adapters": [{"name": "sql", "source": "hf://a/c"}],
            "routing": {"sharedWith": ["other"]},
        },
        "status": {"claimedNames": [{"name": "m", "since": MID}]},
    }
    assert read(each) == Claimant("team", "m", ("fast", "sql"), OLD, ("other",), {"m": MID})
    bare = {"metadata": {"name": "m"}, "spec": {"model": {}}}
    assert read(bare) == Claimant("", "m")


@pytest.mark.parametrize(
    "spec",
    [
        {"model": None},
        *({"model": {"aliases": odd}} for odd in ([{}], [1], 1)),
        *({"model": {}, "routing": {"sharedWith": odd}} for odd in ([{}], [1], 1, "ab")),
    ],
    ids=str,
)
def test_what_is_no_resource_is_said_to_be_none_when_it_is_read(spec: object) -> None:
    with pytest.raises((TypeError, AttributeError)):
        read({"metadata": {"name": "m"}, "spec": spec})


# Whatever is written


NAMES = st.sampled_from(["m", "n", "fast", "a/m", "b/fast"])
TIMES = st.sampled_from([OLD, MID, NEW, ""])
CLAIMANTS = st.builds(
    Claimant,
    namespace=st.sampled_from(["a", "b", "c"]),
    name=st.sampled_from(["m", "n", "x"]),
    others=st.lists(NAMES, max_size=3).map(tuple),
    created=TIMES,
    shared_with=st.lists(st.sampled_from(["a", "b", "c", "*"]), max_size=2).map(tuple),
    held=st.dictionaries(NAMES, TIMES, max_size=3),
)
SETS = st.lists(CLAIMANTS, max_size=6, unique_by=lambda each: each.key)


@given(SETS, st.randoms(use_true_random=False))
def test_the_order_of_reading_plays_no_part(claimants: list[Claimant], rng: random.Random) -> None:
    assert claims(rng.sample(claimants, len(claimants))) == claims(claimants)


@given(SETS)
def test_each_name_that_is_asked_for_has_one_owner_which_asks_for_it(claimants: list[Claimant]) -> None:
    found = claims(claimants)
    asked = {(each.namespace, name) for each in claimants for name in each.asked}
    asked |= {(namespace, qualified(namespace, name)) for namespace, name in asked}
    assert found.owners.keys() == {name for _, name in asked}
    assert {(namespace, name) for name, namespace in found.owners.items()} <= asked
    for each in claimants:
        lost = found.losers.get(each.key, {})
        assert {name for name in each.asked if not found.serves(each.namespace, name)} == lost.keys()


def recorded(claimants: list[Claimant]) -> tuple[list[Claimant], Claims]:
    """As the operator leaves it."""
    found = claims(claimants)
    held = [{each["name"]: each["since"] for each in record(one, found, MID)} for one in claimants]
    return [replace(one, held=names) for one, names in zip(claimants, held, strict=True)], found


@given(SETS, CLAIMANTS.map(lambda each: replace(each, held={})))
def test_nobody_takes_a_name_that_another_has_by_anything_that_it_writes(
    claimants: list[Claimant], another: Claimant
) -> None:
    """Whether it creates a resource or changes one that it has."""
    held, before = recorded([each for each in claimants if each.key != another.key])
    mine = next((each for each in claimants if each.key == another.key), another)
    after = claims([*held, replace(another, held={}, created=mine.created)])
    for name, namespace in before.owners.items():
        if not name.startswith(f"{another.namespace}/"):
            assert after.owners[name] == namespace


@given(SETS)
def test_recording_changes_nothing(claimants: list[Claimant]) -> None:
    held, before = recorded(claimants)
    again, after = recorded(held)
    assert after == before
    assert again == held
