"""A model of which nothing is ready: its requests wait at the gateway until something is."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from headwater_router.admission.room import WaitReason
from tests.router.cluster import ApiServer, member, model, replica
from tests.router.cluster import endpoint_slice as a_slice
from tests.router.gateway import BODY, CHAT, RunningGateway, error_of, gateway, until
from tests.router.test_router_drain import route_with
from tests.router.upstream import upstream

HELD = 'headwater_router_deployment_held{deployment="m",namespace="default"}'
READY = 'headwater_router_deployment_ready_endpoints{deployment="m",namespace="default"}'
ASLEEP = model(autoscaling={"min": 0, "max": 2})


def ended(outcome: str) -> str:
    return f'headwater_router_waits_total{{outcome="{outcome}",reason="not_ready"}}'


@pytest.fixture
async def router(cluster: ApiServer) -> AsyncIterator[RunningGateway]:
    cluster.put(ASLEEP)
    async with gateway(kubernetes=True, ready=0) as running:
        await until(lambda: running.router.fleet.listed)
        yield running


async def held(router: RunningGateway, count: int, body: bytes = BODY) -> list[asyncio.Task[httpx.Response]]:
    """Requests that wait."""
    room = router.router.dispatcher.room
    before = room.waiting()[WaitReason.NOT_READY]
    tasks = [asyncio.create_task(router.post(body)) for _ in range(count)]
    await until(lambda: room.waiting()[WaitReason.NOT_READY] == before + count)
    return tasks


async def test_requests_wait_for_a_model_at_zero_and_are_seen_to(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream() as engine:
        assert [await router.metric(HELD), await router.metric(READY)] == [0, 0]
        assert HELD in (await router.client.get("/metrics")).text, "at zero it is there, too"
        waiting = await held(router, 3)
        assert await router.metric(HELD) == 3
        cluster.put(*replica(engine.port))
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * 3
        assert [await router.metric(HELD), await router.metric(READY), await router.metric(ended("sent"))] == [0, 1, 3]


async def test_a_pod_that_is_not_ready_is_waited_for(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream() as engine:
        starting, _ = replica(engine.port)
        listed = a_slice(member(starting, "127.0.0.1", ready=False), name="m-1", port=engine.port)
        cluster.put(starting, listed)
        [waiting] = await held(router, 1)
        await router.until_ready(1)
        assert not waiting.done(), "its probe says that it is, but Kubernetes does not yet"
        cluster.put(*replica(engine.port))
        assert (await waiting).status_code == 200


async def test_the_last_replica_that_dies_is_waited_for(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream() as engine:
        port = engine.port
        cluster.put(*replica(port))
        await until(lambda: router.router.fleet.ready("m"))
        assert (await router.post()).status_code == 200
    [waiting] = await held(router, 1)
    async with upstream(port=port):
        assert (await waiting).status_code == 200


async def test_an_adapter_that_is_not_loaded_yet_is_waited_for(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream("m") as engine:
        cluster.put(model(adapters=[{"name": "sql", "source": "hf://a/b"}]), *replica(engine.port))
        # One watch tells of the resource, another one of its pods.
        await until(lambda: router.router.fleet.ready("m") and "sql" in router.router.fleet.models)
        [waiting] = await held(router, 1, BODY.replace(b'"m"', b'"sql"'))
        engine.serve_models("m", {"id": "sql", "parent": "m"})
        assert (await waiting).status_code == 200


async def test_whichever_deployment_is_ready_first_gets_the_request(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream("n") as engine:
        cluster.put(model("n", model={"aliases": ["m"]}, routing={"weight": 0}))
        await until(lambda: "n" in router.router.fleet.models)
        [waiting] = await held(router, 1)
        assert router.router.dispatcher.room.waiting_for("default/m") == 1, "by weight it is m that is woken"
        cluster.put(*replica(engine.port, "n-1", "n"))
        assert (await waiting).headers["x-headwater-endpoint"] == "n-1"


async def test_a_model_that_is_deleted_meanwhile_is_not_found(cluster: ApiServer, router: RunningGateway) -> None:
    [waiting] = await held(router, 1)
    cluster.remove(ASLEEP)
    answer = await waiting
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


async def test_what_was_scaled_to_nothing_by_hand_is_not_waited_for(cluster: ApiServer, router: RunningGateway) -> None:
    cluster.put(model(replicas=0))
    await until(lambda: not router.router.fleet.promised("m")[0].wakes)
    answer = await router.post()
    assert (answer.status_code, error_of(answer)["code"]) == (503, "no_endpoint_ready")


BROKEN = "container engine has ended 5 times, last with exit code 1: no such flag"


def told(phase: str = "Failed", generation: int = 1, observed: int = 1, **spec: Any) -> dict[str, Any]:
    """A ModelDeployment with what the operator says of it."""
    degraded = {"type": "Degraded", "status": "True", "reason": "CrashLoop", "message": BROKEN}
    status = {"observedGeneration": observed, "phase": phase, "conditions": [degraded]}
    if adapters := spec.pop("told_adapters", None):
        status["adapters"] = adapters
    each = model(**spec)
    return each | {"metadata": each["metadata"] | {"generation": generation}, "status": status}


async def test_a_failed_model_is_refused_at_once_with_the_operators_reason(
    cluster: ApiServer, router: RunningGateway
) -> None:
    cluster.put(told())
    await until(lambda: router.router.fleet.promised("m")[0].failed)
    answer = await router.post()
    assert (answer.status_code, error_of(answer)["code"]) == (503, "no_endpoint_ready")
    assert "CrashLoop" in error_of(answer)["message"] and BROKEN in error_of(answer)["message"]
    assert "retry-after" in answer.headers


async def test_those_who_wait_are_told_when_their_model_fails(cluster: ApiServer, router: RunningGateway) -> None:
    waiting = await held(router, 2)
    cluster.put(told())
    answers = await asyncio.gather(*waiting)
    assert [answer.status_code for answer in answers] == [503, 503]
    assert BROKEN in error_of(answers[0])["message"]


async def test_a_change_of_the_spec_may_be_the_cure_and_is_waited_for(
    cluster: ApiServer, router: RunningGateway
) -> None:
    async with upstream() as engine:
        cluster.put(told(generation=2))
        [waiting] = await held(router, 1)
        cluster.put(*replica(engine.port))
        assert (await waiting).status_code == 200


async def test_an_adapter_that_no_engine_took_is_refused_at_once_with_the_reason(
    cluster: ApiServer, router: RunningGateway
) -> None:
    adapters = [{"name": "sql", "source": "hf://a/b"}, {"name": "law", "source": "hf://a/c"}]
    refused = [
        {"name": "sql", "loaded": 0, "replicas": 1, "message": "the engine answered 400: rank 256 is too high"},
        {"name": "law", "loaded": 0, "replicas": 0},
    ]
    async with upstream("m") as engine:
        cluster.put(told("Loading", adapters=adapters, told_adapters=refused), *replica(engine.port))
        await until(lambda: router.router.fleet.ready("m"))
        for name in (b'"sql"', b'"default/sql"'):
            answer = await router.post(BODY.replace(b'"m"', name))
            assert (answer.status_code, error_of(answer)["code"]) == (503, "no_endpoint_ready")
            assert "rank 256 is too high" in error_of(answer)["message"]
        [waiting] = await held(router, 1, BODY.replace(b'"m"', b'"law"'))
        engine.serve_models("m", {"id": "law", "parent": "m"})
        assert (await waiting).status_code == 200, "one that is on its way is waited for"


async def test_a_client_that_leaves_is_let_go(cluster: ApiServer, router: RunningGateway) -> None:
    _, writer = await router.open()
    await until(lambda: router.router.dispatcher.room.waiting_for("default/m") == 1)
    writer.close()
    await until(lambda: router.router.dispatcher.room.waiting_for("default/m") == 0)
    assert await router.metric(ended("left")) == 1
    assert router.router.forwarder.open_requests == 0


async def test_more_than_are_held_are_refused_at_once(cluster: ApiServer) -> None:
    cluster.put(ASLEEP)
    async with gateway(kubernetes=True, ready=0, hold_requests=2) as router, upstream() as engine:
        await until(lambda: router.router.fleet.listed)
        waiting = await held(router, 2)
        refused = await router.post()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "hold_full")
        assert refused.headers["retry-after"] == "5"
        assert await router.metric(ended("full")) == 1
        cluster.put(*replica(engine.port))
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]


async def test_what_does_not_get_ready_in_time_is_unavailable(cluster: ApiServer) -> None:
    cluster.put(ASLEEP)
    async with gateway(kubernetes=True, ready=0, hold_seconds=0.01) as router:
        await until(lambda: router.router.fleet.listed)
        refused = await router.post()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "no_endpoint_ready")
        assert refused.headers["retry-after"] == "10"
        assert await router.metric(ended("late")) == 1


async def test_a_router_that_ends_sends_away_what_it_holds(cluster: ApiServer) -> None:
    cluster.put(ASLEEP)
    async with route_with("--kubernetes") as (process, client):
        waiting = asyncio.create_task(client.post(CHAT, content=BODY))
        while f"{HELD} 1.0" not in (await client.get("/metrics")).text:
            pass
        process.terminate()
        refused = await waiting
        assert (refused.status_code, error_of(refused)["code"]) == (503, "draining")
        async with asyncio.timeout(60):
            assert await process.wait() == 0
