"""Where a request goes, whose fault a failure is, and that each stay ends exactly once."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.backoff import Backoff
from headwater.openai.errors import BadRequestError, ServiceUnavailableError
from headwater_router.dispatch.dispatch import Stage
from headwater_router.dispatch.dispatcher import outcome_of
from headwater_router.dispatch.poison import QUARANTINE, Poison
from headwater_router.endpoints.endpoint import Endpoint
from headwater_router.outcome import Outcome
from headwater_router.picker import POLICIES
from tests.router.dispatching import Dispatching


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater_router.dispatch.dispatcher._BACKOFF", Backoff(0.0, 0.0))


def names(endpoints: list[Endpoint]) -> list[str]:
    return [endpoint.name for endpoint in endpoints]


# A stay


@given(st.lists(st.sampled_from(["answered", "first_token", "ended"]), max_size=6))
def test_a_stay_goes_forward_only_and_ends_exactly_once(steps: list[str]) -> None:
    async def run() -> None:
        fake = Dispatching(2)
        dispatch = await fake.dispatcher.choose(fake.call())
        for step in steps:
            stage = dispatch.stage
            target = {"answered": Stage.ANSWERING, "first_token": Stage.GENERATING, "ended": Stage.ENDED}[step]
            try:
                match step:
                    case "answered":
                        dispatch.answered(200)
                    case "first_token":
                        dispatch.first_token(fake.now)
                    case _:
                        dispatch.ended(Outcome.ANSWERED, fake.now)
            except ValueError:
                assert target <= stage
                assert dispatch.stage is stage
            else:
                assert target > stage
        in_flight = sum(endpoint.in_flight for endpoint in fake.fleet)
        assert in_flight == (dispatch.stage is not Stage.ENDED)

    asyncio.run(run())


@given(st.integers(100, 599), st.sampled_from([None, 0.0, 5.0]))
def test_every_status_means_one_outcome(status: int, retry_after: float | None) -> None:
    outcome = outcome_of(status, retry_after)
    assert (outcome is Outcome.ANSWERED) == (200 <= status < 300)
    if status == 503:
        assert outcome is (Outcome.FAILED if retry_after is None else Outcome.OVERLOADED)


# Back-pressure


async def test_a_busy_endpoint_gets_nothing_for_as_long_as_it_asked() -> None:
    fake = Dispatching(2)
    call = fake.call()
    busy = await fake.dispatcher.choose(call)
    busy.retry_after = 7.0
    busy.ended(Outcome.OVERLOADED, fake.now)
    assert await fake.dispatcher.may_retry(call, Outcome.OVERLOADED)
    other = await fake.dispatcher.choose(call)
    assert other.endpoint is not busy.endpoint
    fake.close(call)
    for _ in range(5):
        fake.now += 1.0
        assert (await fake.run({})).stays[0].endpoint is other.endpoint
    fake.now += 3.0
    assert {(await fake.run({})).stays[0].endpoint for _ in range(4)} == {busy.endpoint, other.endpoint}
    assert busy.endpoint.breaker.error_share(fake.now) == 0.0


async def test_where_all_are_busy_the_client_gets_the_longest_wait_and_no_other_endpoint_is_bothered() -> None:
    fake = Dispatching(3)
    call = fake.call()
    for seconds in (3.0, 30.0, 5.0):
        dispatch = await fake.dispatcher.choose(call)
        dispatch.retry_after = seconds
        dispatch.ended(Outcome.OVERLOADED, fake.now)
    assert not await fake.dispatcher.may_retry(call, Outcome.OVERLOADED)
    assert fake.dispatcher.retry_after(call, fake.now) == 30.0
    later = fake.call()
    last = await fake.dispatcher.choose(later)  # Rather one that may say no than nobody.
    last.ended(Outcome.OVERLOADED, fake.now)
    assert not await fake.dispatcher.may_retry(later, Outcome.OVERLOADED)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.1, 50.0), st.floats(0.0, 20.0)), max_size=20))
def test_the_wait_that_one_endpoint_asks_for_moves_no_others(told: list[tuple[int, float, float]]) -> None:
    """Each: who is busy, for how long, and the seconds before the next request. Whoever is free is asked first."""

    async def run() -> None:
        fake = Dispatching(3)
        until = dict.fromkeys(["e0", "e1", "e2"], 0.0)
        for busy, seconds, passes in told:
            fake.now += passes
            call, retry = fake.call(), True
            while retry:
                dispatch = await fake.dispatcher.choose(call)
                name = dispatch.endpoint.name
                tried = {each.endpoint.name for each in call.stays[:-1]}
                soonest = min(max(until[each], fake.now) for each in until.keys() - tried)
                assert until[name] <= soonest
                if retry := name == f"e{busy}":
                    dispatch.retry_after = seconds
                    dispatch.ended(Outcome.OVERLOADED, fake.now)
                    until[name] = fake.now + seconds
                    retry = await fake.dispatcher.may_retry(call, Outcome.OVERLOADED)
                else:
                    dispatch.ended(Outcome.ANSWERED, fake.now)
            fake.close(call)

    asyncio.run(run())


async def test_of_endpoints_that_are_all_busy_the_one_is_asked_that_is_free_soonest() -> None:
    fake = Dispatching(3)
    call = fake.call()
    for seconds in (50.0, 5.0, 20.0):
        dispatch = await fake.dispatcher.choose(call)
        dispatch.retry_after = seconds
        dispatch.ended(Outcome.OVERLOADED, fake.now)
    soonest = call.stays[1].endpoint
    assert {(await fake.run({})).stays[0].endpoint for _ in range(6)} == {soonest}
    fake.now += 6.0
    assert {(await fake.run({})).stays[0].endpoint for _ in range(6)} == {soonest}, "free now, and the only one"


@pytest.mark.parametrize("outcome", [Outcome.OVERLOADED, Outcome.LOST, Outcome.FAILED, Outcome.UNREACHABLE])
async def test_what_the_last_free_endpoint_does_not_answer_goes_to_one_that_is_busy(outcome: Outcome) -> None:
    fake = Dispatching(3)
    for seconds in (30.0, 10.0):
        call = fake.call()
        dispatch = await fake.dispatcher.choose(call)
        dispatch.retry_after = seconds
        dispatch.ended(Outcome.OVERLOADED, fake.now)
        fake.close(call)
    busy = {each.endpoint.name for each in fake.dispatcher.decisions}
    call = await fake.run(dict.fromkeys({"e0", "e1", "e2"} - busy, outcome))
    assert [each.outcome for each in call.stays] == [outcome, Outcome.ANSWERED]
    assert call.stays[1].endpoint is fake.dispatcher.decisions[1].endpoint


async def test_what_one_busy_endpoint_refuses_goes_to_no_second_one() -> None:
    fake = Dispatching(4)
    for _ in range(3):
        fake.close(call := fake.call())
        (await fake.dispatcher.choose(call)).ended(Outcome.OVERLOADED, fake.now)
    call = await fake.run(dict.fromkeys(["e0", "e1", "e2", "e3"], Outcome.OVERLOADED))
    assert len(call.stays) == 2, "the one that was free, and one that was not"


async def test_the_only_endpoint_is_asked_though_it_is_busy() -> None:
    fake = Dispatching(1)
    for _ in range(20):
        assert len((await fake.run({"e0": Outcome.OVERLOADED})).stays) == 1


# Whose fault


async def test_what_one_fails_and_another_answers_is_charged() -> None:
    fake = Dispatching(4)
    for _ in range(40):
        call = await fake.run({"e0": Outcome.FAILED})
        assert call.stays[-1].outcome is Outcome.ANSWERED
    assert names([each for each in fake.endpoints if not each.breaker.closed]) == ["e0"]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.DENIED, Outcome.LOST])
async def test_what_two_replicas_fail_is_no_endpoints_fault(outcome: Outcome) -> None:
    fake = Dispatching(4)
    for number in range(100):
        call = await fake.run(dict.fromkeys(["e0", "e1", "e2", "e3"], outcome), b"{%d}" % number)
        assert len(call.stays) == 2, "one more try, and no third"
    assert all(each.breaker.closed for each in fake.endpoints)
    assert all(each.breaker.error_share(fake.now) == 0.0 for each in fake.endpoints)


async def test_refusals_and_clients_that_leave_say_nothing_of_an_endpoint() -> None:
    fake = Dispatching(2)
    for outcome in (Outcome.REFUSED, Outcome.CLIENT_LEFT, Outcome.UNSENT):
        for _ in range(20):
            dispatch = await fake.dispatcher.choose(fake.call())
            dispatch.ended(outcome, fake.now)
    for each in fake.endpoints:
        each.breaker.failed(fake.now)
        assert each.breaker.error_share(fake.now) == 1.0, "neither counted nor cleared"


async def test_where_all_that_are_left_were_ejected_requests_go_there_all_the_same() -> None:
    fake = Dispatching(2)
    for _ in range(40):
        await fake.run({"e0": Outcome.FAILED})
    fake.fleet.mark_unready(fake.endpoints[1], "gone")
    assert (await fake.run({})).stays[0].endpoint.name == "e0"


# What is tried again


async def test_what_was_slow_is_not_computed_again() -> None:
    for outcome in (Outcome.TIMED_OUT, Outcome.STALLED):
        call = await Dispatching(3).run(dict.fromkeys(["e0", "e1", "e2"], outcome))
        assert len(call.stays) == 1


async def test_the_time_for_an_answer_is_one_over_all_tries() -> None:
    fake = Dispatching(3)
    call = fake.call()
    dispatch = await fake.dispatcher.choose(call)
    deadline = call.deadline
    fake.now += 100.0
    dispatch.ended(Outcome.FAILED, fake.now)
    assert await fake.dispatcher.may_retry(call, Outcome.FAILED)
    await fake.dispatcher.choose(call)
    assert call.deadline == deadline


async def test_at_most_a_fifth_of_the_open_requests_are_retries() -> None:
    fake = Dispatching(3)
    budget = fake.dispatcher.budget
    calls = [fake.call(b"%d" % number) for number in range(30)]
    budget.open_requests = len(calls)
    firsts = [await fake.dispatcher.choose(call) for call in calls]
    for dispatch in firsts:
        dispatch.ended(Outcome.FAILED, fake.now)
    allowed = [await fake.dispatcher.may_retry(call, Outcome.FAILED) for call in calls]
    assert sum(allowed) == 6
    for call in calls:
        fake.close(call)
    assert budget.retries == 0


async def test_a_loss_waits_for_its_turn_to_be_tried_again() -> None:
    fake = Dispatching(3)
    fake.dispatcher.budget.open_requests = 10
    served = 0

    async def one(number: int) -> None:
        nonlocal served
        call = fake.call(b"%d" % number)
        (await fake.dispatcher.choose(call)).ended(Outcome.LOST, fake.now)
        assert await fake.dispatcher.may_retry(call, Outcome.LOST)
        assert fake.dispatcher.budget.retries <= 3
        dispatch = await fake.dispatcher.choose(call)
        await asyncio.sleep(0)
        fake.answer(dispatch)
        fake.close(call)
        served += 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(one(number))
    assert served == 10
    assert fake.dispatcher.budget.retries == 0


async def test_a_client_that_leaves_gives_its_turn_back() -> None:
    fake = Dispatching(3)
    calls = [fake.call(b"%d" % number) for number in range(3)]
    for call in calls:
        (await fake.dispatcher.choose(call)).ended(Outcome.LOST, fake.now)
        assert await fake.dispatcher.may_retry(call, Outcome.LOST)
    late = fake.call(b"late")
    (await fake.dispatcher.choose(late)).ended(Outcome.LOST, fake.now)
    waiting = asyncio.create_task(fake.dispatcher.may_retry(late, Outcome.LOST))
    await asyncio.sleep(0)
    assert not waiting.done()
    fake.close(calls[0])
    assert await waiting
    for call in (*calls, late):
        fake.close(call)
    assert fake.dispatcher.budget.retries == 0


# Requests that engines die of


async def test_a_request_that_two_engines_died_of_is_refused_for_a_while() -> None:
    fake = Dispatching(4)
    everywhere = dict.fromkeys(["e0", "e1", "e2", "e3"], Outcome.LOST)
    await fake.run(everywhere, b"kills")
    with pytest.raises(BadRequestError) as refusal:
        fake.dispatcher.check("/v1/completions", b"kills", fake.now)
    assert refusal.value.code == "request_breaks_engines"
    fake.dispatcher.check("/v1/completions", b"another", fake.now)
    fake.dispatcher.check("/v1/completions", b"kills", fake.now + 301.0)


def test_of_several_that_two_engines_were_lost_with_none_is_to_blame_until_one_is_there_again() -> None:
    poison = Poison()
    bodies = [b"kills", b"innocent", b"harmless"]
    for body, life in itertools.product(bodies, ("e0#1", "e1#1")):
        poison.lost(body, life, 0.0)
    assert not any(poison.to_blame(body, 1.0) for body in bodies)
    for body, life in itertools.product((b"kills", b"another"), ("e2#1", "e3#1")):
        poison.lost(body, life, 2.0)
    assert [body for body in (*bodies, b"another") if poison.to_blame(body, 3.0)] == [b"kills"]
    assert not poison.to_blame(b"kills", 2.0 + QUARANTINE)
    assert len(poison) == 0


def test_who_is_there_wherever_the_one_that_kills_is_cannot_be_told_from_it_for_long() -> None:
    poison = Poison()
    bodies = [b"kills", b"with it"]
    for number in range(4):
        assert not any(poison.to_blame(body, 1.0) for body in bodies)
        for body in bodies:
            poison.lost(body, f"e{number}#1", 1.0)
    assert all(poison.to_blame(body, 1.0) for body in bodies)


def test_two_losses_that_lie_far_apart_say_nothing() -> None:
    poison = Poison()
    poison.lost(b"often asked", "e0#1", 0.0)
    poison.lost(b"another", "e0#1", QUARANTINE - 1)
    poison.lost(b"often asked", "e1#1", QUARANTINE)
    assert not poison.to_blame(b"often asked", QUARANTINE)


def test_no_more_bodies_are_remembered_than_a_few_thousand() -> None:
    poison = Poison()
    for number in range(5000):
        poison.lost(b"%d" % number, "e0#1", 0.0)
    poison.lost(b"4999", "e1#1", 0.0)
    assert (len(poison), poison.to_blame(b"4999", 0.0)) == (4096, True)


async def test_a_body_that_engines_die_of_after_its_first_token_is_found_over_several_requests() -> None:
    fake = Dispatching(4)
    for _ in range(2):
        fake.dispatcher.check("/v1/completions", b"kills", fake.now)
        call = fake.call(b"kills")
        dispatch = await fake.dispatcher.choose(call)
        call.sends.sent()
        dispatch.answered(200)
        dispatch.first_token(fake.now)
        call.forget_body()
        call.sends.lost()
        dispatch.ended(Outcome.LOST, fake.now)
        fake.close(call)
    with pytest.raises(BadRequestError):
        fake.dispatcher.check("/v1/completions", b"kills", fake.now)


async def test_a_body_that_an_engine_has_answered_is_none_that_kills() -> None:
    fake = Dispatching(4)
    at: set[str] = set()
    for _ in range(4):
        call = fake.call(b"asked by many")
        lost = await fake.dispatcher.choose(call)
        at.add(lost.endpoint.name)
        fake.fail(lost, Outcome.LOST)
        fake.answer(await fake.dispatcher.choose(call))
        fake.close(call)
        fake.dispatcher.check("/v1/completions", b"asked by many", fake.now)
    assert len(at) >= 2


async def test_the_end_of_an_engine_that_was_about_to_end_is_nobodys_fault() -> None:
    fake = Dispatching(2)
    stays = [await fake.dispatcher.choose(fake.call(b"long")) for _ in range(2)]
    for dispatch in stays:
        dispatch.endpoint.accepting = False
        fake.fail(dispatch, Outcome.LOST)
    assert stays[0].endpoint is not stays[1].endpoint
    fake.dispatcher.check("/v1/completions", b"long", fake.now)


# Short is not fast


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "session"])
@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.DENIED, Outcome.OVERLOADED, Outcome.FAILED])
async def test_who_refuses_at_once_does_not_draw_the_traffic(policy: str, outcome: Outcome) -> None:
    fake = Dispatching(4, policy, max_attempts=1)
    open_: list[tuple[float, object]] = []
    sent: dict[str, int] = {}
    for _ in range(600):
        fake.now += 0.05
        while open_ and open_[0][0] <= fake.now:
            open_.pop(0)[1].ended(Outcome.ANSWERED, fake.now)
        dispatch = await fake.dispatcher.choose(fake.call())
        sent[dispatch.endpoint.name] = sent.get(dispatch.endpoint.name, 0) + 1
        if dispatch.endpoint.name == "e0":
            dispatch.answered(429)
            dispatch.ended(outcome, fake.now)
        else:
            dispatch.answered(200)
            dispatch.first_token(fake.now + 0.01)
            open_.append((fake.now + 1.0, dispatch))
    assert sent.get("e0", 0) <= 1.3 * 600 / 4


async def test_penalties_end() -> None:
    fake = Dispatching(2)
    for _ in range(10):
        await fake.run({"e0": Outcome.REFUSED, "e1": Outcome.REFUSED})
    assert sum(each.targets[0].load.penalty for each in fake.endpoints) == 10
    fake.dispatcher.settle(fake.now + 61.0)
    assert sum(each.targets[0].load.penalty for each in fake.endpoints) == 0


async def test_nowhere_to_go_is_said() -> None:
    fake = Dispatching(1)
    fake.fleet.mark_unready(fake.endpoints[0], "gone")
    with pytest.raises(ServiceUnavailableError):
        await fake.dispatcher.choose(fake.call())
