"""Times that clients ask for by headers: who gets such a request, who is refused, and what is told of it."""

import asyncio
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.openai.errors import BadRequestError, ServiceUnavailableError
from headwater_router.dispatch.dispatch import Dispatch
from headwater_router.gateway.slo import SLO_HEADERS, read_slo
from headwater_router.index import PrefixIndex
from headwater_router.outcome import Outcome
from headwater_router.picker import POLICIES, make
from headwater_router.picker.base import Prompt, Slo, Target
from headwater_router.picker.targets import Targets
from tests.router.dispatching import Dispatching
from tests.router.gateway import BODY, STREAM, error_of, gateway
from tests.router.upstream import WORD, Exchange, answer_with, stream_in_two, upstream

# What headers say


def test_our_own_names_come_before_llm_ds_and_these_before_their_older_ones() -> None:
    headers = [
        (b"x-slo-ttft-ms", b"300"),
        (b"x-llm-d-slo-ttft-ms", b"200"),
        (b"x-headwater-slo-ttft-ms", b"100"),
        (b"x-slo-tpot-ms", b"30.5"),
        (b"x-other", b"1"),
    ]
    assert read_slo(headers, 10.0) == Slo(0.1, 0.0305, 10.1)
    assert read_slo(headers[:2], 10.0) == Slo(0.2, math.inf, 10.2)
    assert read_slo(headers[3:], 10.0) == Slo(math.inf, 0.0305, math.inf)
    assert read_slo(headers[4:], 10.0) is None
    assert read_slo(headers[:1] * 2, 0.0) == Slo(0.3, math.inf, 0.3), "twice the same is once"


@pytest.mark.parametrize(
    "value", [b"", b"0", b"-5", b"nan", b"inf", b"1e3", b"1_000", b"12 34", b"fast", b"3600001", b"\xff", b"9" * 400]
)
@pytest.mark.parametrize("name", sorted(SLO_HEADERS))
def test_what_is_no_time_is_refused_by_name(name: bytes, value: bytes) -> None:
    with pytest.raises(BadRequestError, match=name.decode()) as caught:
        read_slo([(name, value)], 0.0)
    assert caught.value.code == "invalid_slo"


def test_two_values_for_one_name_are_refused() -> None:
    with pytest.raises(BadRequestError, match="twice"):
        read_slo([(b"x-slo-ttft-ms", b"1"), (b"x-slo-ttft-ms", b"2")], 0.0)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(sorted(SLO_HEADERS)), st.binary(max_size=12)), max_size=6))
def test_whatever_headers_say_it_is_a_time_or_a_400(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        slo = read_slo(headers, 5.0)
    except BadRequestError:
        return
    assert (slo is None) == (not headers)
    assert slo is None or (slo.ttft > 0 and slo.per_token > 0 and slo.first_by == 5.0 + slo.ttft)


# Who gets it


def learned(targets: Targets, slow: int = 0) -> tuple[object, PrefixIndex, float]:
    """A picker that has seen engines read 10,000 tokens a second, and answer 100; the first `slow` of them a third."""
    index, now = PrefixIndex(), 0.0
    picker = make("prefix", index, random.Random(0))
    for _ in range(12):
        for number, target in enumerate(targets.all):
            factor = 3.0 if number < slow else 1.0
            for tokens in (200, 1500):
                decision = picker.pick(Prompt("m", [], tokens), [target], now)
                decision.targets = targets  # type: ignore[attr-defined]
                first = now + factor * (0.01 + 1e-4 * tokens)
                picker.first_token(decision, first)
                picker.finished(decision, first + factor * 0.01 * 50, Outcome.ANSWERED, 0, 51)
                now += 5
    return picker, index, now


def hold(index: PrefixIndex, target: Target, chain: list[int]) -> None:
    index.answered(target.id, chain, index.dispatched(target.id, chain, None, 0.0, 1 << 20))


def test_an_endpoint_that_keeps_the_time_comes_before_a_cheaper_one_that_does_not() -> None:
    targets = Targets(Target(f"pod-{number}") for number in range(2))
    picker, index, now = learned(targets)
    chain = list(range(40))
    busy = targets.all[0]
    hold(index, busy, chain)
    for _ in range(2):
        picker.pick(Prompt("m", [], 3000), [busy], now)  # They are before it there.
    prompt = Prompt("m", chain, 40 * 128 + 10)
    without = picker.pick(prompt, targets, now)
    assert without.keeps_slo is None
    firsts = {each.target_id: each.predicted_ttft for each in without.candidates()}
    picker.finished(without, now, Outcome.CLIENT_LEFT)
    cheaper, other = without.target, next(each for each in targets.all if each is not without.target)
    quickest = min(firsts, key=firsts.__getitem__)
    if quickest == cheaper.id:
        pytest.fail(f"the cheaper one is the quicker one, too: {firsts}")
    wanted = (firsts[cheaper.id] + firsts[other.id]) / 2
    prompt.slo = Slo(wanted, math.inf, now + wanted)
    found = picker.pick(prompt, targets, now)
    assert (found.target, found.keeps_slo) == (other, True)


@settings(max_examples=40)
@given(st.floats(1e-3, 10.0), st.floats(1e-4, 1.0), st.integers(0, 12), st.integers(1, 3000))
def test_whoever_keeps_both_is_chosen_and_else_who_misses_by_the_least(
    ttft: float, per_token: float, busy: int, tokens: int
) -> None:
    targets = Targets(Target(f"pod-{number}") for number in range(3))
    picker, _, now = learned(targets, slow=1)
    for number in range(busy):
        picker.pick(Prompt("m", [], 900), [targets.all[number % 2]], now)
    slo = Slo(ttft, per_token, now + ttft)
    decision = picker.pick(Prompt("m", [], tokens, slo=slo), targets, now)
    misses = {
        each.target: slo.missed_by(now + each.first, each.rest / decision.output)  # type: ignore[attr-defined]
        for each in decision.compared  # type: ignore[attr-defined]
    }
    assert misses[decision.target] == min(misses.values())
    assert decision.keeps_slo == (min(misses.values()) == 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_before_anything_is_learned_nothing_is_promised(policy: str) -> None:
    decision = make(policy).pick(Prompt("m", [1], 100, slo=Slo(0.1, 0.1, 0.1)), [Target("a"), Target("b")], 0.0)
    assert decision.keeps_slo is None


# Who is refused


async def teach(fake: Dispatching) -> None:
    for _ in range(40):
        call = fake.call()
        fake.answer(await fake.dispatcher.choose(call), 0.5)
        fake.close(call)


@pytest.mark.parametrize("refuses", [False, True])
async def test_what_nobody_should_keep_is_refused_if_that_is_wanted(refuses: bool) -> None:
    fake = Dispatching(2, policy="prefix", refuses_slo=refuses)
    await teach(fake)
    for ttft, attainable in ((10.0, True), (0.001, False)):
        call = fake.call()
        call.prompt.slo = Slo(ttft, math.inf, fake.now + ttft)
        if attainable or not refuses:
            dispatch = await fake.dispatcher.choose(call)
            assert dispatch.decision.keeps_slo is attainable
            fake.answer(dispatch)
        else:
            with pytest.raises(ServiceUnavailableError) as caught:
                await fake.dispatcher.choose(call)
            assert (caught.value.code, caught.value.retry_after) == ("slo_unattainable", 2)
        fake.close(call)
    assert sum(each.in_flight for each in fake.fleet) == 0
    assert fake.descriptors.requests == 0


async def test_after_a_slow_spell_one_request_at_a_time_finds_out_whether_it_is_over() -> None:
    fake = Dispatching(1, policy="prefix", refuses_slo=True)
    for _ in range(40):
        call = fake.call()
        dispatch = await fake.dispatcher.choose(call)
        fake.now += 20
        fake.answer(dispatch)
        fake.close(call)

    async def sent() -> Dispatch | None:
        call = fake.call()
        call.prompt.slo = Slo(0.45, math.inf, fake.now + 0.45)
        try:
            return await fake.dispatcher.choose(call)
        except ServiceUnavailableError:
            fake.close(call)
            return None

    assert await sent() is None
    for _ in range(200):
        fake.now += 11
        trial = await sent()
        assert trial is not None
        fake.now += 0.01
        assert await sent() is None or trial.decision.keeps_slo, "it is not idle any more"
        fake.answer(trial, 0.05)
        fake.close(trial.call)
        if trial.decision.keeps_slo:
            return
    pytest.fail("it never found out")


async def test_what_was_sent_once_is_tried_again_though_its_time_is_over() -> None:
    fake = Dispatching(3, policy="prefix", refuses_slo=True)
    await teach(fake)
    call = fake.call()
    call.prompt.slo = Slo(10.0, math.inf, fake.now + 10.0)
    dispatch = await fake.dispatcher.choose(call)
    fake.now += 60
    fake.fail(dispatch, Outcome.FAILED)
    assert await fake.dispatcher.may_retry(call, Outcome.FAILED)
    fake.answer(await fake.dispatcher.choose(call))
    fake.close(call)


# Through the gateway


def sample(objective: str, outcome: str) -> str:
    return f'headwater_router_slo_total{{model="m",objective="{objective}",outcome="{outcome}"}}'


async def test_headers_are_read_and_go_to_no_engine_and_what_came_of_them_is_counted() -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(WORD % b"1" + WORD % b"2")
        usage = b'{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}'
        await exchange.chunk(b'data: {"choices":[],"usage":' + usage + b"}\n\ndata: [DONE]\n\n")
        await exchange.chunk(b"")

    async with upstream() as engine, gateway(engine) as router:
        engine.answer = stream
        for ttft, tpot in (("3600000", "3600000"), ("0.000001", "0.000000001")):
            answer = await router.post(STREAM, x_headwater_slo_ttft_ms=ttft, x_llm_d_slo_tpot_ms=tpot)
            assert answer.status_code == 200
        for objective in ("ttft", "tpot"):
            assert await router.metric(sample(objective, "met")) == 1
            assert await router.metric(sample(objective, "missed")) == 1
        assert all(not SLO_HEADERS & exchange.headers.keys() for exchange in engine.exchanges)
        engine.answer = answer_with(400)
        await router.post(STREAM, x_slo_ttft_ms="100")
        assert await router.metric(sample("ttft", "missed")) == 2
        await router.post(BODY, x_slo_ttft_ms="100")
        assert await router.metric(sample("ttft", "missed")) == 2, "what is not streamed has no first token"


async def test_a_time_that_makes_no_sense_is_a_400() -> None:
    async with upstream() as engine, gateway(engine) as router:
        refused = await router.post(x_headwater_slo_tpot_ms="soon")
        assert (refused.status_code, error_of(refused)["code"]) == (400, "invalid_slo")
        assert not engine.exchanges


async def test_what_is_refused_for_its_time_is_told_and_counted() -> None:
    release = asyncio.Event()
    release.set()
    async with upstream() as engine, gateway(engine, policy="prefix", slo_admission="attainable") as router:
        engine.answer = stream_in_two(WORD % b"1", b"data: [DONE]\n\n", release)
        for _ in range(3):
            assert (await router.post(STREAM)).status_code == 200
        refused = await router.post(STREAM, x_headwater_slo_ttft_ms="0.000001")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "slo_unattainable")
        assert refused.headers["retry-after"] == "2"
        assert await router.metric(sample("ttft", "refused")) == 1
        assert router.in_flight == 0
