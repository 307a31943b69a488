"""A router that finds its endpoints through a cluster: requests follow what is written there."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.router.cluster import ApiServer, Object, endpoint_slice, member, model, pod, replica
from tests.router.gateway import BODY, CHAT, STREAM, RunningGateway, error_of, gateway, until
from tests.router.upstream import WORD, answer_at_once, stream_in_two, upstream

FIRST, LAST = WORD % b"1", b"data: [DONE]\n\n"


@pytest.fixture
async def router(cluster: ApiServer) -> AsyncIterator[RunningGateway]:
    async with gateway(kubernetes=True, hold_requests=0, ready=0) as running:
        yield running


def ask(name: str) -> bytes:
    return BODY.replace(b'"m"', f'"{name}"'.encode())


async def names(router: RunningGateway) -> list[str]:
    return [card["id"] for card in (await router.client.get("/v1/models")).json()["data"]]


async def until_takes(router: RunningGateway, *pods: str) -> None:
    await until(lambda: {each.name for each in router.router.fleet if each.takes_requests} == set(pods))


async def test_a_router_of_an_empty_cluster_is_ready_and_knows_no_model(router: RunningGateway) -> None:
    await until(lambda: router.router.fleet.listed)
    assert (await router.client.get("/ready")).status_code == 200
    assert await names(router) == []
    refused = await router.post()
    assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")


async def test_a_router_that_has_not_heard_of_the_cluster_yet_is_not_ready(cluster: ApiServer) -> None:
    cluster.refusal = 503
    async with gateway(kubernetes=True, ready=0) as router:
        assert (await router.client.get("/ready")).status_code == 503
        assert (await router.post()).status_code == 503, "the model may be there all the same"
        cluster.refusal = None
        await until(lambda: router.router.fleet.listed)
        assert (await router.post()).status_code == 404


async def test_a_new_model_is_served_without_a_restart(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream("m") as first, upstream("n", "short") as second:
        cluster.put(model(), *replica(first.port))
        await until_takes(router, "m-1")
        assert (await router.post()).headers["x-headwater-endpoint"] == "m-1"
        cluster.put(model("n", model={"aliases": ["short"]}), *replica(second.port, "n-1", "n"))
        await until_takes(router, "m-1", "n-1")
        assert (await router.post(ask("short"))).headers["x-headwater-endpoint"] == "n-1"
        assert await names(router) == ["m", "n", "short"]
        assert second.exchanges[0].body == ask("short"), "as it came"


async def test_a_deleted_model_is_not_found(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream() as engine:
        cluster.put(model(), *replica(engine.port))
        await until_takes(router, "m-1")
        cluster.remove(model())
        await until_takes(router)
        refused = await router.post()
        assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")
        assert await names(router) == []


async def test_a_model_without_an_endpoint_is_listed_and_unavailable(
    cluster: ApiServer, router: RunningGateway
) -> None:
    cluster.put(model(adapters=[{"name": "sql", "source": "hf://a/b"}]))
    await until(lambda: router.router.fleet.models == ["m", "sql"])
    assert await names(router) == ["m", "sql"]
    assert (await router.client.get("/v1/models/sql")).json()["parent"] == "m"
    refused = await router.post()
    assert (refused.status_code, error_of(refused)["code"]) == (503, "no_endpoint_ready")


@pytest.mark.parametrize("how", ["terminating", "not ready"])
async def test_who_ends_gets_nothing_new_and_finishes_what_it_has(
    cluster: ApiServer, router: RunningGateway, how: str
) -> None:
    release = asyncio.Event()
    async with upstream() as old, upstream() as new:
        old.answer = stream_in_two(FIRST, LAST, release)
        cluster.put(model(), *replica(old.port, "old"))
        await until_takes(router, "old")
        async with router.client.stream("POST", CHAT, content=STREAM) as answer:
            pieces = answer.aiter_bytes()
            assert await anext(pieces) == FIRST
            cluster.put(*replica(new.port, "new"))
            await until_takes(router, "old", "new")
            if how == "terminating":
                cluster.put(pod("old", address="127.0.0.1", ending=True))
            else:
                listed = member(pod("old"), "127.0.0.1", ready=False)
                cluster.put(endpoint_slice(listed, name="old", port=old.port))
            await until_takes(router, "new")
            assert {(await router.post()).headers["x-headwater-endpoint"] for _ in range(6)} == {"new"}
            load = 'headwater_router_deployment_in_flight{deployment="m",namespace="default"}'
            assert await router.metric(load) == 1, "it is still at work"
            cluster.remove(*replica(old.port, "old"))
            await until(lambda: [endpoint.name for endpoint in router.router.fleet] == ["new"])
            release.set()
            assert [piece async for piece in pieces] == [LAST]


async def test_a_new_pod_at_an_old_address_is_a_new_endpoint(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream() as engine:
        cluster.put(model(), *replica(engine.port, uid="old"))
        await until_takes(router, "m-1")
        [before] = router.router.fleet
        cluster.put(*replica(engine.port, uid="new"))
        await until(lambda: [endpoint.spec.uid for endpoint in router.router.fleet] == ["new"])
        await until_takes(router, "m-1")
        [after] = router.router.fleet
        assert before.targets[0].id != after.targets[0].id
        assert (await router.post()).status_code == 200


async def test_who_is_dead_is_noticed_before_kubernetes_does(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream() as other:
        async with upstream() as engine:
            cluster.put(model(), *replica(engine.port), *replica(other.port, "m-2"))
            await until_takes(router, "m-1", "m-2")
        answers = [await router.post() for _ in range(4)]
        assert {answer.headers["x-headwater-endpoint"] for answer in answers} == {"m-2"}


async def test_while_the_api_server_is_gone_requests_go_on(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream() as engine:
        cluster.put(model(), *replica(engine.port))
        await until_takes(router, "m-1")
        await cluster.stop()
        failed = 'headwater_router_watch_errors_total{kind="pods"}'
        while not await router.metric(failed):
            assert (await router.post()).status_code == 200
        assert (await router.client.get("/ready")).status_code == 200
        assert await router.metric('headwater_router_watch_age_seconds{kind="pods"}') > 0


async def test_an_adapter_is_served_from_when_it_is_loaded_until_it_is_unloaded(
    cluster: ApiServer, router: RunningGateway
) -> None:
    async with upstream("m") as engine:
        cluster.put(model(), *replica(engine.port))
        await until_takes(router, "m-1")
        assert (await router.post(ask("sql"))).status_code == 404
        engine.serve_models("m", {"id": "sql", "parent": "m"})
        await until(lambda: "sql" in router.router.fleet.models)
        assert (await router.post(ask("sql"))).status_code == 200
        engine.serve_models("m")
        await until(lambda: "sql" not in router.router.fleet.models)
        assert (await router.post(ask("sql"))).status_code == 404


@pytest.mark.parametrize("listed", ["/weights", None], ids=["lists its own name", "lists nothing"])
async def test_a_server_with_a_name_of_its_own_is_asked_by_that(
    cluster: ApiServer, router: RunningGateway, listed: str | None
) -> None:
    async with upstream("m") as engine:
        if listed:
            engine.serve_models(listed)
        else:
            engine.pages[b"/v1/models"] = (404, b"")
        cluster.put(model(), *replica(engine.port))
        await until_takes(router, "m-1")
        body = b'{"model": "m", "temperature": 0.70, "messages": []}'
        assert (await router.post(body)).status_code == 200
        [exchange] = engine.exchanges
        if listed:
            assert json.loads(exchange.body) == json.loads(body) | {"model": listed}
        else:
            assert exchange.body == body
        assert exchange.headers[b"content-length"] == str(len(exchange.body)).encode()


OLD, NEW = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"


def created(each: Object, time: str, **held: str) -> Object:
    each["metadata"]["creationTimestamp"] = time
    each["status"] = {"claimedNames": [{"name": name, "since": since} for name, since in held.items()]}
    return each


async def test_pods_of_one_name_in_two_namespaces_are_two_endpoints(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream("m") as first, upstream("n") as second:
        for engine, namespace, name in ((first, "a", "m"), (second, "b", "n")):
            cluster.put(model(name, namespace))
            cluster.put(*replica(engine.port, "pod-0", name, namespace=namespace, uid=namespace))
        await until_takes(router, "a/pod-0", "b/pod-0")
        assert (await router.post(ask("m"))).headers["x-headwater-endpoint"] == "a/pod-0"
        assert (await router.post(ask("n"))).headers["x-headwater-endpoint"] == "b/pod-0"
        load = 'headwater_router_endpoint_ready{endpoint="%s"}'
        assert [await router.metric(load % name) for name in ("a/pod-0", "b/pod-0", "pod-0")] == [1, 1, 0]
        [before, _] = router.router.fleet
        cluster.remove(pod("pod-0", "n", "b"))
        await until_takes(router, "pod-0")
        [after] = router.router.fleet
        assert after is before, "a name is only a name: all that is known of it stays"


async def test_an_alias_in_another_namespace_takes_no_request(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream("m") as own, upstream("n", "m") as thief:
        steal = {"model": {"aliases": ["m"]}, "routing": {"weight": 1_000_000}}
        cluster.put(created(model("n", "a", **steal), OLD), *replica(thief.port, "n-1", "n", namespace="a"))
        cluster.put(created(model("m", "z"), NEW), *replica(own.port, namespace="z"))
        await until_takes(router, "m-1", "n-1")
        for number in range(20):
            assert (await router.post(BODY.replace(b"hi", b"%d" % number))).status_code == 200
        assert len(own.exchanges) == 20
        assert not thief.exchanges
        assert (await router.post(ask("n"))).headers["x-headwater-endpoint"] == "n-1"
        assert await names(router) == ["a/m", "m", "n"]


async def test_a_name_by_its_namespace_always_works_and_is_translated(
    cluster: ApiServer, router: RunningGateway
) -> None:
    async with upstream("m") as first, upstream("m", {"id": "sql", "parent": "m"}) as second:
        cluster.put(created(model("m", "a"), OLD), *replica(first.port, namespace="a", uid="a"))
        cluster.put(created(model("m", "b"), NEW), *replica(second.port, namespace="b", uid="b"))
        await until_takes(router, "a/m-1", "b/m-1")
        await until(lambda: "sql" in router.router.fleet.models)
        for name, at in (("a/m", "a/m-1"), ("b/m", "b/m-1"), ("m", "a/m-1"), ("b/sql", "b/m-1")):
            assert (await router.post(ask(name))).headers["x-headwater-endpoint"] == at
        assert [json.loads(each.body)["model"] for each in second.exchanges] == ["m", "sql"]
        assert await names(router) == ["b/m", "m", "sql"]


async def test_the_owner_of_a_name_may_share_it(cluster: ApiServer, router: RunningGateway) -> None:
    async with upstream("m") as own, upstream("m") as guest:
        cluster.put(created(model("m", "z", routing={"weight": 1}), OLD), *replica(own.port, namespace="z", uid="z"))
        cluster.put(created(model("m", "a", routing={"weight": 9}), NEW), *replica(guest.port, namespace="a", uid="a"))
        await until_takes(router, "a/m-1", "z/m-1")
        assert (await router.post()).headers["x-headwater-endpoint"] == "z/m-1"
        cluster.put(created(model("m", "z", routing={"weight": 1, "sharedWith": ["a"]}), OLD))
        await until(lambda: len(router.router.fleet.serving("m")) == 2)
        for number in range(40):
            assert (await router.post(BODY.replace(b"hi", b"%d" % number))).status_code == 200
        assert len(guest.exchanges) > 20
        cluster.put(created(model("m", "z", routing={"weight": 1}), OLD))
        await until(lambda: len(router.router.fleet.serving("m")) == 1)
        assert (await router.post()).headers["x-headwater-endpoint"] == "z/m-1"


async def test_endpoints_of_flags_and_of_a_cluster_stand_side_by_side(cluster: ApiServer) -> None:
    async with upstream("m") as engine, upstream("static") as static:
        engine.answer = answer_at_once
        cluster.put(model(), *replica(engine.port))
        async with gateway(static, kubernetes=True, ready=2) as router:
            assert (await router.post(ask("static"))).headers["x-headwater-endpoint"] == "a"
            assert (await router.post()).headers["x-headwater-endpoint"] == "m-1"
            assert await names(router) == ["m", "static"]
