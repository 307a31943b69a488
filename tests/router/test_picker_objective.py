"""What the prefix policy makes short, and the bounds within which it does, whatever was learned."""

import random
from collections import Counter
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.admission.ceiling import Report
from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker import make
from headwater_router.picker.base import Decision, Others, Picker, Prompt, Target
from headwater_router.picker.objective import Objective
from headwater_router.picker.targets import Targets


def prefix_picker(objective: Objective = Objective.LATENCY) -> tuple[Picker, PrefixIndex]:
    index = PrefixIndex()
    return make("prefix", index, random.Random(0), objective), index


def hold(index: PrefixIndex, target: Target, chain: list[int]) -> None:
    index.answered(target.id, chain, index.dispatched(target.id, chain, None, 0.0, 1 << 20))


def answers(picker: Picker, targets: Targets, per_answer: float, rounds: int = 300) -> float:
    """Of engines that read 50,000 prompt tokens a second, and whose steps take 5 ms and this much for each answer."""
    rng, now = random.Random(1), 0.0
    for _ in range(rounds):
        open_: list[Decision] = []
        for _ in range(rng.randrange(1, 24)):
            open_.append(picker.pick(Prompt("m", [], rng.randrange(100, 3000)), targets, now))
        counts = {target: target.load.in_flight for target in targets.all}
        ready = dict.fromkeys(counts, now)
        for each in open_:
            ready[each.target] += 0.005 + 2e-5 * each.prompt.tokens
            picker.first_token(each, ready[each.target])
        for each in open_:
            took = 300 * (0.005 + per_answer * counts[each.target])
            picker.finished(each, ready[each.target] + took, Outcome.ANSWERED, 0, 300)
        now += 100
    return now


@pytest.mark.parametrize("objective", Objective)
@given(
    burst=st.integers(1, 300),
    own=st.integers(1, 500),
    shared=st.integers(1, 60),
    count=st.integers(2, 8),
    learned=st.sampled_from([None, 0.0, 2e-4]),
    others=st.sampled_from([None, Others(0, 0, 0)]),
)
def test_no_engine_gets_more_than_four_times_the_mean_and_a_few_whatever_it_holds(
    objective: Objective, burst: int, own: int, shared: int, count: int, learned: float | None, others: Others | None
) -> None:
    """Of engines that are alike. `others`: what other routers say that they have there."""
    picker, index = prefix_picker(objective)
    targets = Targets(Target(f"pod-{number}") for number in range(count))
    now = 1.0 if learned is None else answers(picker, targets, learned, rounds=8)
    chain = list(range(shared))
    hold(index, targets.all[0], chain)
    for target in targets.all:
        target.load.others = others
    for _ in range(burst):
        picker.pick(Prompt("m", chain, 128 * shared + own), targets, now)
    loads = [target.load.in_flight for target in targets.all]
    assert max(loads) <= 4 * mean(loads) + 5


@given(
    depths=st.lists(st.integers(0, 12), min_size=2, max_size=6),
    more=st.tuples(st.integers(0, 5), st.integers(1, 12)),
    busy=st.lists(st.integers(0, 5), max_size=30),
    objective=st.sampled_from(Objective),
)
def test_more_in_its_cache_makes_an_endpoint_no_less_likely(
    depths: list[int], more: tuple[int, int], busy: list[int], objective: Objective
) -> None:
    """All else equal: what it costs there falls, and stays what it was elsewhere."""
    chain = list(range(24))
    lucky, further = more[0] % len(depths), more[1]

    def costs(held: list[int]) -> dict[str, float]:
        picker, index = prefix_picker(objective)
        targets = Targets(Target(f"pod-{number}") for number in range(len(held)))
        for number in busy:
            picker.pick(Prompt("m", [1000 + number], 700), [targets.all[number % len(held)]], 0.0)
        for target, depth in zip(targets.all, held, strict=True):
            if depth:
                hold(index, target, chain[:depth])
        decision = picker.pick(Prompt("m", chain, 128 * 24 + 50), targets, 1.0)
        return {each.target.id: each.cost for each in decision.compared}  # type: ignore[attr-defined]

    before = costs(depths)
    after = costs([depth + further * (number == lucky) for number, depth in enumerate(depths)])
    assert after.pop(f"pod-{lucky}") < before.pop(f"pod-{lucky}")
    assert after == pytest.approx(before)


def test_a_hot_prefix_spreads_as_its_answers_need_unless_first_tokens_count_most() -> None:
    most = {}
    for objective in Objective:
        picker, index = prefix_picker(objective)
        targets = Targets(Target(f"pod-{number}") for number in range(4))
        now = answers(picker, targets, 2e-4)
        chain = list(range(32))
        hold(index, targets.all[0], chain)
        for number in range(8):
            decision = picker.pick(Prompt("m", chain, 32 * 128 + 100), targets, now + number)
            picker.first_token(decision, now + number + 0.05)
        most[objective] = max(target.load.in_flight for target in targets.all)
    assert most[Objective.FIRST_TOKEN] >= 6
    assert most[Objective.LATENCY] <= 4


def test_a_number_of_tokens_that_no_answer_has_teaches_nothing() -> None:
    picker, _ = prefix_picker()
    targets = Targets([Target("a")])
    answers(picker, targets, 2e-4, rounds=20)

    def cost() -> float:
        decision = picker.pick(Prompt("m", [], 500), targets, 1e6)
        picker.finished(decision, 1e6, Outcome.FAILED)
        return decision.chosen.cost  # type: ignore[attr-defined]

    before = cost()
    decision = picker.pick(Prompt("m", [], 500), targets, 1e6)
    picker.first_token(decision, 1e6 + 0.03)
    after_first = cost()
    picker.finished(decision, 1e6 + 2, Outcome.ANSWERED, 0, 10**15)
    assert cost() == pytest.approx(before, rel=0.1)
    assert after_first >= before


@pytest.mark.parametrize("objective", Objective)
def test_an_engine_whose_memory_is_nearly_full_costs_more_and_the_more_the_fuller_it_is(objective: Objective) -> None:
    costs = []
    for usage in (0.5, 0.88, 0.95, 0.99):
        picker, _ = prefix_picker(objective)
        targets = Targets(Target(f"pod-{number}") for number in range(2))
        full = targets.all[0]
        full.load.total_blocks, full.load.block_size = 1000, 16
        for _ in range(3):
            picker.pick(Prompt("m", [], 200), [full], 0.0)
        full.load.report(Report(running=3, waiting=0, cache_usage=usage))
        decision = picker.pick(Prompt("m", [], 1000), targets, 1.0)
        costs.append({each.target: each.cost for each in decision.compared}[full])  # type: ignore[attr-defined]
    assert costs[0] < costs[1] < costs[2] < costs[3]


def chosen_beside(others: Others | None, prompt: Prompt) -> Counter[str]:
    """By forty routers, of which none sees what another chooses: pod-0 has an answer less than pod-1 and pod-2, pod-3 a
    prompt that is still to be computed, pod-4 has as many answers as pod-0, but nothing of what the rest hold, and
    pod-5 has five answers more."""
    chosen = Counter[str]()
    for seed in range(40):
        index = PrefixIndex()
        picker = make("prefix", index, random.Random(seed))
        targets = Targets(Target(f"pod-{number}") for number in range(6))
        now = answers(picker, targets, 5e-5, rounds=12)
        for target, count in zip(targets.all, (6, 7, 7, 6, 6, 11), strict=True):
            for _ in range(count):
                picker.first_token(picker.pick(Prompt("m", [], 500), [target], now), now + 0.02)
        picker.pick(Prompt("m", [], 500), targets.all[3:4], now + 0.02)
        for target in targets.all:
            target.load.others = others
            hold(index, target, [1, 2] if target.id != "pod-4" else [])
            hold(index, target, [5, 6])
        chosen[picker.pick(prompt, targets, now + 0.02).target.id] += 1
    return chosen


def test_beside_other_routers_chance_decides_among_those_an_answer_apart_that_begin_as_soon() -> None:
    held = Prompt("m", [1, 2], 500)
    assert chosen_beside(None, held) == {"pod-0": 40}
    found = chosen_beside(Others(0, 0, 0), held)
    assert set(found) == {"pod-0", "pod-1", "pod-2"}
    assert max(found.values()) < 30


@pytest.mark.parametrize("hashes", [[3, 4], [5, 6]], ids=["nobody", "everybody"])
def test_beside_other_routers_a_prompt_that_all_have_as_much_of_to_compute_goes_further(hashes: list[int]) -> None:
    prompt = Prompt("m", hashes, 500)
    assert set(chosen_beside(None, prompt)) == {"pod-0", "pod-4"}
    assert set(chosen_beside(Others(0, 0, 0), prompt)) == {"pod-0", "pod-1", "pod-2", "pod-4", "pod-5"}
