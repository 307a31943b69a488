"""A request for an adapter goes where that is loaded, where engines tell of it, and there is no better reason."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from headwater.backends.metrics import Adapters
from headwater_router.admission.ceiling import Report
from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.adapters import LOADING_SECONDS, Slots
from headwater_router.picker.base import Decision, Picker, Prompt, Target

HAS = Adapters(1, ("sql",))
LACKS = Adapters(1, ("chat",))


def prefix_picker(seed: int = 0) -> Picker:
    return make("prefix", PrefixIndex(), random.Random(seed))


def engines(*told: Adapters | None) -> list[Target]:
    targets = [Target(f"pod-{number}") for number in range(len(told))]
    for target, adapters in zip(targets, told, strict=True):
        target.load.report(Report(0, 0, adapters=adapters))
    return targets


def prompt(adapter: str = "sql", tokens: int = 1000) -> Prompt:
    return Prompt("m", [], tokens, adapter=adapter)


def chosen(picker: Picker, targets: list[Target], adapter: str = "sql") -> Target:
    decision = picker.pick(prompt(adapter), targets, 0.0)
    picker.finished(decision, 0.0, Outcome.UNSENT)
    return decision.target


def test_it_goes_to_the_engine_that_has_the_adapter() -> None:
    targets = engines(LACKS, HAS, LACKS)
    assert {chosen(prefix_picker(seed), targets).id for seed in range(20)} == {"pod-1"}


def test_an_engine_without_the_adapter_is_taken_once_the_other_one_has_much_to_do() -> None:
    picker, targets = prefix_picker(), engines(HAS, LACKS)
    found = Counter(picker.pick(prompt(), targets, 0.0).target.id for _ in range(200))
    assert found["pod-0"] >= found["pod-1"] > 20


def test_what_was_sent_there_counts_before_a_gauge_tells_of_it() -> None:
    picker, targets = prefix_picker(), engines(*[Adapters(2, ())] * 8)
    homes = {chosen(picker, targets).id for _ in range(10)}
    assert len(homes) == 1


def test_an_adapter_that_nobody_uses_any_more_goes_when_others_need_its_slot() -> None:
    slots = Slots()
    slots.used("early")
    assert not slots.lack("early")  # It has not said that it has slots.
    slots.told(Adapters(2, ("a", "b")))
    slots.used("a")
    slots.told(Adapters(2, ("c",)))
    assert [name for name in "abc" if not slots.lack(name)] == ["a", "c"]
    assert slots.full
    slots.told(Adapters(3, ()))
    assert not slots.full
    slots.told(None)
    assert not slots.lack("b")


def test_predicted_is_the_time_to_load_as_well() -> None:
    def first_token(told: Adapters | None) -> float:
        picker, targets = prefix_picker(), engines(told)
        for now in range(30):
            decision = picker.pick(prompt(""), targets, now)
            picker.first_token(decision, now + 0.25)
            picker.finished(decision, now + 0.5, Outcome.ANSWERED, 0, 20)
        ttft = picker.pick(prompt(), targets, 100.0).predicted_ttft
        assert ttft is not None
        return ttft

    assert first_token(HAS) == first_token(None)
    assert abs(first_token(LACKS) - first_token(HAS) - LOADING_SECONDS) < 1e-9


@given(
    seed=st.integers(0, 1000),
    loads=st.lists(st.integers(0, 12), min_size=2, max_size=2),
    size=st.integers(1, 200_000),
    beside=st.sampled_from([None, HAS, LACKS]),
)
def test_an_engine_that_has_the_adapter_is_never_less_likely_all_else_equal(
    seed: int, loads: list[int], size: int, beside: Adapters | None
) -> None:
    """With the same luck: where it is chosen without the adapter, it is with it."""

    def first_is_chosen(told: Adapters) -> bool:
        picker, targets = prefix_picker(seed), engines(told, beside)
        for target, load in zip(targets, loads, strict=True):
            for _ in range(load):
                picker.pick(prompt(""), [target], 0.0)
        return picker.pick(prompt(tokens=size), targets, 0.0).target is targets[0]

    assert first_is_chosen(HAS) or not first_is_chosen(LACKS)


@given(seed=st.integers(0, 1000), count=st.integers(1, 60))
def test_where_no_engine_tells_of_adapters_a_request_for_one_is_like_any_other(seed: int, count: int) -> None:
    def found(adapter: str) -> list[tuple[str, float]]:
        picker, targets = prefix_picker(seed), engines(None, None, None)
        decisions: list[Decision] = [picker.pick(prompt(adapter), targets, 0.0) for _ in range(count)]
        return [(each.target.id, each.taken()) for each in decisions]

    assert found("sql") == found("")
