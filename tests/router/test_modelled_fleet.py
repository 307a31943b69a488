"""The modelled engines of benchmarks/fleet do what they say, and the router's own dispatcher drives them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import mean

import pytest

from benchmarks.fleet import peers, router, workloads
from benchmarks.fleet.__main__ import policies
from benchmarks.fleet.blind import Blind
from benchmarks.fleet.channel import Link
from benchmarks.fleet.engine import Engine, TurnedDownError
from benchmarks.fleet.figures import Figures, figures_of, pooled, seen_of
from benchmarks.fleet.hardware import H100_8B
from benchmarks.fleet.memory import BLOCK, Memory, chain_of
from benchmarks.fleet.peers.base import Only
from benchmarks.fleet.ranks import Ranks
from benchmarks.fleet.requests import Request, arrivals, fresh, shared
from benchmarks.fleet.simulation import Event, Run, Workload, simulate
from benchmarks.virtual_clock import VirtualLoop
from headwater_router.admission.room import WaitReason
from headwater_router.dispatch.waiting import Patience


def few(count: int, generate: Callable[[random.Random], Iterator[Request]]) -> Callable[..., Iterator[Request]]:
    return lambda rng: islice(generate(rng), count)


def run(workload: Workload, policy: str = "prefix", routers: int = 1, link: Link | None = None, seed: int = 1) -> Run:
    return simulate(workload, partial(policies, policy), routers=routers, link=link, seed=seed)


def times(result: Run) -> list[tuple[float, float | None, float | None]]:
    return sorted((record.request.at, record.ttft, record.duration) for record in result.records)


def test_a_request_alone_takes_what_its_steps_take() -> None:
    def one(rng: random.Random) -> Iterator[Request]:
        yield Request(1.0, fresh(rng, 1000), fresh(rng, 11))

    [record] = run(Workload("one", one, speeds=(0.5,))).records
    cost = H100_8B
    first = cost.step + 1000 * cost.prefill + cost.pair * 1000 * 500
    rest = sum(cost.step + cost.decode + cost.kv * (1000 + number) for number in range(10))
    assert record.ttft == pytest.approx(first / 0.5)
    assert record.duration == pytest.approx((first + rest) / 0.5)


def test_strides_are_as_steps_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Gauges that are read within a stride are a little behind, and who waits for room would go by them.
    monkeypatch.setitem(router.PATIENCE, WaitReason.FULL, Patience(0, 1.0))
    hardware = replace(H100_8B, kv_tokens=9000, max_running=12)
    workload = Workload("small", few(120, workloads.hot_prefix), hardware, (1.0, 0.7))
    in_strides = times(run(workload, "round_robin"))
    monkeypatch.setattr(Engine, "_stride", lambda self: 1)
    for strided, stepped in zip(in_strides, times(run(workload, "round_robin")), strict=True):
        assert strided == pytest.approx(stepped, rel=1e-6)


def test_memory_gives_back_what_was_taken_and_keeps_what_was_computed() -> None:
    rng, memory = random.Random(1), Memory(64 * BLOCK)
    text = fresh(rng, 20 * BLOCK + 7)
    chain = chain_of("", text)
    assert memory.take(chain, 20 * BLOCK + 7) == 0
    assert memory.take(chain, 20 * BLOCK + 7) == 20 * BLOCK
    assert memory.taken == 20 * BLOCK + 14
    memory.release(chain, 7)
    memory.release(chain, 7)
    assert memory.taken == 0
    other = chain_of("", fresh(rng, 50 * BLOCK))
    assert memory.take(other, 50 * BLOCK) == 0
    assert memory.take(chain, 20 * BLOCK) is None
    memory.release(other, 0)
    assert memory.take(chain, 20 * BLOCK) == 14 * BLOCK  # Its tail went first.


def test_an_engine_turns_down_what_is_too_much_and_loses_all_when_it_dies() -> None:
    loop = VirtualLoop()
    engine = Engine(loop, replace(H100_8B, max_running=1, max_waiting=1))
    rng = random.Random(2)
    stays = [engine.submit(Request(0.0, fresh(rng, 100), fresh(rng, 10)), lambda now: None) for _ in range(2)]
    with pytest.raises(TurnedDownError):
        engine.submit(Request(0.0, fresh(rng, 100), fresh(rng, 10)), lambda now: None)
    engine.die()
    assert all(stay.ended.done() for stay in stays)
    assert (engine.running, engine.waiting, engine.memory.taken) == (0, 0, 0)
    loop.close()


def test_requests_that_had_not_begun_on_an_engine_that_dies_are_answered_by_another() -> None:
    def whole(rng: random.Random) -> Iterator[Request]:
        for at in arrivals(rng, 20.0, 10.0):
            yield Request(at, fresh(rng, 500), fresh(rng, 50), streamed=False)

    events = (Event(3.0, 0, False), Event(6.0, 0, True))
    result = run(Workload("death", whole, speeds=(1.0, 1.0), events=events))
    assert all(record.duration is not None for record in result.records)
    assert {record.engine for record in result.records} == set(result.engines)


@pytest.mark.parametrize("policy", ["prefix", "prefix first-token", "least_loaded", *peers.PEERS])
def test_a_run_answers_all_and_is_the_same_each_time(policy: str) -> None:
    workload = Workload("small", few(40, workloads.conversations), speeds=(1.0,) * 4)
    first, second = run(workload, policy), run(workload, policy)
    assert times(first) == times(second)
    assert all(record.duration is not None for record in first.records)
    assert all(engine.memory.taken == 0 for engine in first.engines)


def test_several_routers_share_the_engines() -> None:
    workload = Workload("small", few(200, workloads.hot_prefix), speeds=(1.0,) * 4)
    assert figures_of(run(workload, routers=3)).imbalance < 1.5


def test_the_rank_with_the_fewest_requests_gets_the_next_one_whatever_it_holds() -> None:
    loop, rng = VirtualLoop(), random.Random(2)
    ranks = Ranks(loop, replace(H100_8B, max_running=1), 2)
    for _ in range(6):
        ranks.submit(Request(0.0, shared("same", 1000), fresh(rng, 10)), lambda now: None)
    assert [each.running + each.waiting for each in ranks.ranks] == [3, 3]
    assert (ranks.running, ranks.waiting) == (2, 4)
    ranks.die()
    assert (ranks.running, ranks.waiting, ranks.memory.taken) == (0, 0, 0)
    loop.close()


@pytest.mark.parametrize("policy", ["prefix", "llm-d precise"])
def test_fleets_of_ranks_answer_all_and_find_less_cached_than_engines_with_addresses_of_their_own(policy: str) -> None:
    cached = []
    for speeds, ranks in (((1.0,) * 4, 1), ((1.0,) * 2, 2)):
        result = run(Workload("ranks", few(300, shared_by_groups), speeds=speeds, ranks=ranks), policy)
        assert all(record.duration is not None for record in result.records)
        cached.append(figures_of(result).cached)
    assert 0.0 < cached[1] < cached[0]


@pytest.mark.parametrize("policy", ["prefix", "llm-d precise"])
def test_ranks_that_requests_are_sent_to_find_as_much_cached_as_engines_with_addresses(policy: str) -> None:
    cached = []
    for workload in (
        Workload("ranks", few(300, shared_by_groups), speeds=(1.0,) * 4),
        Workload("ranks", few(300, shared_by_groups), speeds=(1.0,) * 2, ranks=2, addressed=True),
    ):
        result = run(workload, policy)
        assert all(record.duration is not None for record in result.records)
        assert all(engine.memory.taken == 0 for engine in result.engines)
        cached.append(figures_of(result).cached)
    assert cached[1] == pytest.approx(cached[0], abs=0.02)


def shared_by_groups(rng: random.Random) -> Iterator[Request]:
    for at in arrivals(rng, 12.0, 40.0):
        system = shared(f"group {rng.randrange(30)}", 6000)
        yield Request(at, system + fresh(rng, 600), fresh(rng, 200))


GROUPS = Workload("groups of few", shared_by_groups, speeds=(1.0,) * 4)
SEEDS = range(1, 10)


@pytest.fixture(scope="module")
def one_router() -> Figures:
    return pooled([seen_of(run(GROUPS, seed=seed)) for seed in SEEDS])


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_eight_routers_that_talk_are_about_as_good_as_one(loss: float, one_router: Figures) -> None:
    """Of nine seeds together: of three, the 99th percentile is a matter of 14 requests."""
    eight = pooled([seen_of(run(GROUPS, routers=8, link=Link(loss), seed=seed)) for seed in SEEDS])
    assert eight.cached >= one_router.cached - 0.02 > figures_of(run(GROUPS, routers=8)).cached
    assert eight.ttft_p99 is not None
    assert one_router.ttft_p99 is not None
    assert eight.ttft_p99 <= 1.05 * one_router.ttft_p99


def test_eight_routers_find_out_which_engines_are_slow_as_soon_as_one() -> None:
    """Each sees but an eighth of the answers."""
    workload = Workload("unlike", few(480, workloads.two_speeds), speeds=(1.0,) * 2 + (0.4,) * 2)

    def late(result: Run) -> float:
        """Of those that came once one router knew: the answers' mean."""
        return mean(each.duration for each in result.records if each.duration is not None and each.request.at > 10.0)

    assert late(run(workload, routers=8, link=Link())) <= 1.05 * late(run(workload))


def test_what_came_before_is_left_out_of_the_figures() -> None:
    result = run(Workload("few", few(60, workloads.groups), speeds=(1.0,) * 4))
    at = sorted(each.request.at for each in result.records)
    seen, late = seen_of(result), seen_of(result, since=at[20])
    assert (seen.requests, late.requests) == (60, 40)
    assert late.seconds == seen.seconds - at[20]
    assert sorted(late.durations) == sorted(
        each.duration for each in result.records if each.duration is not None and each.request.at >= at[20]
    )


def test_routers_that_hear_nothing_of_one_another_do_as_routers_that_do_not_talk() -> None:
    workload = Workload("few", few(200, workloads.groups), speeds=(1.0,) * 4)
    apart = times(run(workload, routers=4))
    assert times(run(workload, routers=4, link=Link(loss=1.0))) == apart
    assert times(run(workload, routers=4, link=Link(gone_at=0.0))) == apart
    assert times(run(workload, routers=4, link=Link())) != apart


def test_routers_whose_channel_goes_away_answer_all_that_comes_after() -> None:
    workload = Workload("few", few(200, workloads.groups), speeds=(1.0,) * 4)
    result = run(workload, routers=4, link=Link(gone_at=4.0))
    assert max(record.request.at for record in result.records) > 6.0
    assert all(record.duration is not None for record in result.records)


def test_each_seed_has_traffic_of_its_own_and_figures_of_several_are_of_all_their_requests() -> None:
    first, second = (run(GROUPS, routers=2, link=Link(), seed=seed) for seed in (1, 2))
    assert [each.request.prompt for each in first.records[:9]] != [each.request.prompt for each in second.records[:9]]
    both = pooled([seen_of(first), seen_of(second)])
    durations = [each.duration for each in (*first.records, *second.records) if each.duration is not None]
    assert both.requests == len(durations)
    assert both.mean == pytest.approx(mean(durations))
    assert both.p99 == sorted(durations)[int(0.99 * len(durations))]


def hot(rng: random.Random) -> Iterator[Request]:
    system = shared("hot", 4000)
    for at in arrivals(rng, 14.0, 40.0):
        yield Request(at, system + fresh(rng, 200), fresh(rng, 600))


@pytest.mark.parametrize(
    "workload",
    [
        Workload("hot", hot),
        Workload("groups", few(500, workloads.groups)),
        Workload("unlike", few(500, workloads.two_speeds), speeds=(1.0,) * 4 + (0.4,) * 4),
        Workload("whole", few(600, partial(workloads.not_streamed, per_second=24.0)), speeds=(1.0,) * 4 + (0.4,) * 4),
    ],
    ids=lambda workload: workload.name,
)
def test_whole_answers_take_no_longer_than_by_load_alone_nor_than_by_the_cache_alone(workload: Workload) -> None:
    ours = figures_of(run(workload))
    for other in ("least_loaded", "smg cache_aware"):
        theirs: Figures = figures_of(run(workload, other))
        assert ours.mean <= 1.02 * theirs.mean
        assert ours.p99 <= 1.05 * theirs.p99


def test_a_router_that_is_blind_for_no_time_is_as_one_that_sees_all_and_for_some_meets_the_others() -> None:
    workload = Workload("small", few(300, workloads.unique))
    pickers = [Blind(random.Random("1 0"), seconds, 8) for seconds in (0.0, 0.02)]
    policies_of = [Only(picker) for picker in pickers]
    sees, blind = (times(simulate(workload, lambda _: policies_of.pop(0))) for _ in pickers)
    assert sees == times(run(workload))
    assert blind != sees
    assert [picker.met > 0 for picker in pickers] == [False, True]
    left = [(known.backlog.work, known.outputs, len(known.queue)) for known in pickers[1]._known.values()]
    assert left == [pytest.approx((0, 0, 0), abs=1e-6)] * 8
