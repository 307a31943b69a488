"""Deployments that find their shares, and those that do not, through the dispatcher and the gateway."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headwater_router.endpoints.discovery import read_endpoints
from headwater_router.endpoints.endpoint import EndpointError, EndpointSpec
from headwater_router.endpoints.group import Group, Share
from headwater_router.gateway.controls import RouterControls
from headwater_router.gateway.usage import Usage
from headwater_router.index.tokenizers import Tokenizers
from headwater_router.outcome import Outcome
from headwater_router.picker.classes import Kind, Traits
from headwater_router.picker.split import Why
from tests.router.dispatching import Dispatching
from tests.router.gateway import BODY, RunningGateway, gateway, until
from tests.router.upstream import OK, Exchange, Upstream, upstream

AUTO = (Group("quick", 100, Share.AUTO), Group("slow", 100, Share.AUTO))


async def run(it: Dispatching, count: int, structured: bool = False, **seconds: float) -> Counter[tuple[str, Why]]:
    """So many conversations, each answered after the time that its deployment takes."""
    rng, found = random.Random(count), Counter[tuple[str, Why]]()
    for _ in range(count):
        call = it.call()
        call.conversation, call.traits = rng.getrandbits(64), Traits(structured)
        dispatch = await it.dispatcher.choose(call)
        name = dispatch.endpoint.spec.whose
        found[name, dispatch.why] += 1
        it.answer(dispatch, seconds[name], Usage(100, 0, 50))
        it.close(call)
    return found


def share(it: Dispatching, kind: Kind, name: str) -> float:
    return it.dispatcher.spread.splits("m")[kind].places[name].share


async def test_each_class_goes_where_it_costs_less() -> None:
    it = Dispatching(2, groups=AUTO)
    await run(it, 600, quick=1.0, slow=2.0)
    await run(it, 600, structured=True, quick=2.0, slow=1.0)
    assert (share(it, Kind.PLAIN, "quick"), share(it, Kind.STRUCTURED, "slow")) == (1.0, 1.0)
    found = await run(it, 300, quick=1.0, slow=2.0)
    assert found["quick", Why.SHARE] + found["quick", Why.EXPLORED] + found["slow", Why.EXPLORED] == 300
    assert found["slow", Why.EXPLORED] > 0


async def test_a_deployment_that_has_no_endpoint_for_a_while_keeps_its_share() -> None:
    it = Dispatching(2, groups=AUTO)
    await run(it, 600, quick=1.0, slow=2.0)
    quick, _ = it.endpoints
    it.fleet.mark_unready(quick, "it restarts")
    assert (await run(it, 20, quick=1.0, slow=2.0)).keys() == {("slow", Why.ALONE)}
    it.fleet.mark_ready(quick, quick.models)
    await run(it, 1, quick=1.0, slow=2.0)
    assert share(it, Kind.PLAIN, "quick") == 1.0


async def test_only_whole_answers_that_tell_their_usage_teach() -> None:
    it = Dispatching(2, groups=AUTO)
    for outcome in (Outcome.REFUSED, Outcome.CLIENT_LEFT, Outcome.ANSWERED):
        call = it.call()
        it.fail(await it.dispatcher.choose(call), outcome)
        it.close(call)
    assert all(place.answers == 0 for place in it.dispatcher.spread.splits("m")[Kind.PLAIN].places.values())


async def test_beside_one_that_goes_by_its_weight_the_others_share_what_is_left() -> None:
    it = Dispatching(3, groups=(*AUTO, Group("canary", 50)))
    found = await run(it, 1500, quick=1.0, slow=2.0, canary=1.0)
    assert found["canary", Why.WEIGHT] == pytest.approx(300, rel=0.15)
    assert share(it, Kind.PLAIN, "quick") == 1.0
    assert "canary" not in it.dispatcher.spread.splits("m")[Kind.PLAIN].places


async def test_without_auto_nothing_is_found_and_weights_decide() -> None:
    it = Dispatching(2, groups=(Group("a", 0), Group("b", 10)))
    assert (await run(it, 50, a=1.0, b=9.0)).keys() == {("b", Why.WEIGHT)}
    assert it.dispatcher.spread.splits("m") == {}


async def test_what_is_found_of_a_model_that_is_gone_is_forgotten() -> None:
    it = Dispatching(2, groups=AUTO)
    await run(it, 5, quick=1.0, slow=2.0)
    it.fleet.models = ()
    it.dispatcher.spread._forget()
    assert list(it.dispatcher.spread) == []


async def test_the_admin_api_says_who_gets_what_and_why() -> None:
    it = Dispatching(2, groups=AUTO)
    await run(it, 1200, quick=1.0, slow=2.0)
    controls = RouterControls(it.dispatcher, it.dispatcher._policies, it.dispatcher._policies.index, Tokenizers())
    (model,) = controls.models()
    assert model.deployments == ["quick", "slow"]
    quick, slow = model.shares
    assert (quick.kind, quick.deployment, quick.share, quick.most) == (Kind.PLAIN, "quick", 1.0, 1.0)
    assert quick.cost is not None
    assert slow.cost is not None
    assert quick.cost < slow.cost
    assert quick.cached_share == 0.0
    last = controls.decisions()[-1]
    assert (last.deployment, last.kind, last.why) in {
        ("quick", Kind.PLAIN, Why.SHARE), ("quick", Kind.PLAIN, Why.EXPLORED), ("slow", Kind.PLAIN, Why.EXPLORED)
    }  # fmt: skip


# Through the gateway

USAGE = OK[:-1] + b',"usage":{"prompt_tokens":20,"completion_tokens":5}}'


async def tells(exchange: Exchange) -> None:
    await exchange.whole(USAGE)


def flags(*engines: Upstream, share: str = "Auto") -> list[str]:
    return [
        f"{engine.url},name={name},backend=vllm,deployment={name},share={share}"
        for engine, name in zip(engines, ("bulk", "prefix"), strict=True)
    ]


def turn(number: int, **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": f"{number}"}], **more}).encode()


async def test_the_gateway_counts_and_learns_by_class() -> None:
    async with upstream("m") as one, upstream("m") as other:
        one.answer = other.answer = tells
        async with gateway(endpoint=flags(one, other), ready=2) as router:
            for number in range(40):
                form = {"response_format": {"type": "json_object"}} if number % 4 == 0 else {}
                assert (await router.post(turn(number, **form))).status_code == 200
            splits = router.router.dispatcher.spread.splits("m")
            assert splits.keys() == {Kind.PLAIN, Kind.STRUCTURED}
            for kind, least in ((Kind.PLAIN, 20), (Kind.STRUCTURED, 8)):
                assert sum(place.answers for place in splits[kind].places.values()) > least
            sent = [
                await router.metric(
                    "headwater_router_deployment_requests_total"
                    f'{{class="plain",deployment="{name}",namespace="",reason="{why}"}}'
                )
                for name in ("bulk", "prefix")
                for why in ("share", "explored")
            ]
            assert sum(sent) == 30
            label = '{class="plain",deployment="bulk",model="m",namespace=""}'
            assert await router.metric(f"headwater_router_deployment_share{label}") == 0.5


async def test_a_conversation_stays_in_its_deployment() -> None:
    async with upstream("m") as one, upstream("m") as other:
        one.answer = other.answer = tells
        async with gateway(endpoint=flags(one, other), ready=2) as router:
            for number in range(10):
                said = [{"role": "user", "content": f"{number}"}]
                found = set()
                for _ in range(4):
                    answer = await router.post(turn(0, messages=said))
                    found.add(answer.headers["x-headwater-endpoint"])
                    said += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
                assert len(found) == 1


async def test_a_new_weight_in_the_file_holds_at_once_and_renews_no_endpoint(tmp_path: Path) -> None:
    async with upstream("m") as one, upstream("m") as other:
        file = tmp_path / "endpoints.yaml"

        def weigh(first: int, second: int) -> None:
            entries = [
                {"url": engine.url, "name": name, "backend": "vllm", "deployment": name, "weight": weight}
                for engine, name, weight in ((one, "a", first), (other, "b", second))
            ]
            file.write_text(json.dumps(entries))

        weigh(0, 1)
        async with gateway(endpoint=[], endpoints_file=file, ready=2) as router:
            assert await _asked(router) == {"b"}
            known = list(router.router.fleet)
            weigh(1, 0)
            await until(lambda: router.router.fleet.deployment(known[0]).weight == 1)
            assert await _asked(router) == {"a"}
            assert list(router.router.fleet) == known


async def _asked(router: RunningGateway) -> set[str]:
    return {(await router.post(BODY)).headers["x-headwater-endpoint"] for _ in range(8)}


# What is written of deployments


def test_a_flag_says_which_deployment_an_endpoint_is_of() -> None:
    spec = EndpointSpec.parse("http://h,deployment=bulk,weight=3,share=Auto")
    group = spec.group
    assert (spec.whose, group.name, group.weight, group.share) == ("bulk", "bulk", 3, Share.AUTO)
    assert EndpointSpec.parse("http://h").whose == ""


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("weight=3", "give it a name"),
        ("share=Auto", "give it a name"),
        ("deployment=a/b", "deployment must be letters"),
        ("deployment=" + "a" * 64, "deployment must be letters"),
        ("deployment=", "deployment must be letters"),
        ("deployment=a,weight=-1", "weight must be a whole number"),
        ("deployment=a,weight=1000001", "weight must be a whole number"),
        ("deployment=a,weight=٣", "weight must be a whole number"),
        ("deployment=a,share=auto", "share must be Weight or Auto"),
    ],
)
def test_what_cannot_be_is_refused(settings: str, complaint: str) -> None:
    with pytest.raises(EndpointError, match=complaint):
        EndpointSpec.parse(f"http://h,{settings}")


def test_endpoints_of_one_deployment_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text(
        "- {url: 'http://h:1', deployment: a, weight: 1}\n- {url: 'http://h:2', deployment: a, weight: 2}\n"
    )
    with pytest.raises(EndpointError, match="'a' must say the same weight and share"):
        read_endpoints(file)
