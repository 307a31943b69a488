"""Two deployments of one name behind one gateway."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from headwater_router.picker.base import Target
from tests.router.cluster import ApiServer, model, pod, replica
from tests.router.gateway import BODY, RunningGateway, gateway, until
from tests.router.upstream import Upstream, answer_with, upstream

ENGINES = {"old-1": "old", "old-2": "old", "new-1": "new"}
"""Pods and their deployments."""


@pytest.fixture
async def engines() -> AsyncIterator[dict[str, Upstream]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(upstream("old", "new", "m")) for name in ENGINES}


@pytest.fixture
async def router(cluster: ApiServer, engines: dict[str, Upstream]) -> AsyncIterator[RunningGateway]:
    weigh(cluster, 3, 1)
    for name, deployment in ENGINES.items():
        cluster.put(*replica(engines[name].port, name, deployment))
    async with gateway(kubernetes=True, ready=3) as running:
        yield running


def weigh(cluster: ApiServer, old: int, new: int, policy: str = "round_robin") -> None:
    for name, weight in (("old", old), ("new", new)):
        cluster.put(model(name, model={"aliases": ["m"]}, routing={"weight": weight, "policy": policy}))


def turn(conversation: int, *more: bytes) -> bytes:
    return BODY.replace(b"hi", b"%d" % conversation).replace(b"}]", b"}%b]" % b"".join(more))


async def asked(router: RunningGateway, count: int = 60, **headers: str) -> Counter[str]:
    """The deployments that answered as many conversations."""
    answers = [await router.post(turn(number), **headers) for number in range(count)]
    assert {answer.status_code for answer in answers} == {200}
    return Counter(ENGINES[answer.headers["x-headwater-endpoint"]] for answer in answers)


async def test_conversations_are_shared_out_by_weight_not_by_replicas(router: RunningGateway) -> None:
    found = await asked(router, 200)
    assert 130 < found["old"] < 170
    assert found.total() == 200


async def test_a_conversation_stays_in_its_deployment(router: RunningGateway) -> None:
    reply = b',{"role":"assistant","content":"yes"}'
    for number in range(10):
        answers = [await router.post(turn(number, *[reply] * length)) for length in range(4)]
        assert len({ENGINES[answer.headers["x-headwater-endpoint"]] for answer in answers}) == 1


async def test_names_of_their_own_lead_to_one_deployment(router: RunningGateway) -> None:
    for name in ("old", "new"):
        answers = [await router.post(turn(number).replace(b'"m"', b'"%b"' % name.encode())) for number in range(10)]
        assert {ENGINES[answer.headers["x-headwater-endpoint"]] for answer in answers} == {name}


async def test_a_new_weight_holds_at_once(cluster: ApiServer, router: RunningGateway) -> None:
    weigh(cluster, 0, 1)
    await until(lambda: router.router.fleet.deployments["default/old"].weight == 0)
    assert await asked(router) == {"new": 60}


async def test_a_deployment_without_an_endpoint_leaves_its_requests_to_the_others(
    cluster: ApiServer, router: RunningGateway
) -> None:
    weigh(cluster, 1, 0)
    for name in ("old-1", "old-2"):
        cluster.put(pod(name, "old", address="127.0.0.1", ending=True))
    await until(lambda: sum(endpoint.takes_requests for endpoint in router.router.fleet) == 1)
    assert await asked(router) == {"new": 60}


async def test_a_request_that_fails_in_one_deployment_is_tried_in_the_other(
    engines: dict[str, Upstream], router: RunningGateway
) -> None:
    engines["old-1"].answer = engines["old-2"].answer = answer_with(500)
    assert await asked(router, 8) == {"new": 8}


async def test_each_deployment_has_its_own_policy(cluster: ApiServer, router: RunningGateway) -> None:
    def policies() -> set[str | None]:
        return {each.policy for each in router.router.fleet.deployments.values()}

    weigh(cluster, 1, 0, "session")
    await until(lambda: policies() == {"session"})
    answers = [await router.post(turn(number), x_session_id="s") for number in range(6)]
    assert len({answer.headers["x-headwater-endpoint"] for answer in answers}) == 1
    weigh(cluster, 1, 0, "round_robin")
    await until(lambda: policies() == {"round_robin"})
    answers = [await router.post(turn(number), x_session_id="s") for number in range(6)]
    assert Counter(answer.headers["x-headwater-endpoint"] for answer in answers) == {"old-1": 3, "old-2": 3}


async def test_a_policy_that_is_not_known_here_is_the_routers_own(cluster: ApiServer, router: RunningGateway) -> None:
    weigh(cluster, 1, 0, "of-a-later-release")
    await until(lambda: router.router.fleet.deployments["default/old"].policy == "of-a-later-release")
    assert await asked(router, 6) == {"old": 6}
    policies = router.router._policies
    assert policies.of("of-a-later-release") is policies.of("round_robin")


async def test_all_policies_forget_an_endpoint_that_is_gone(cluster: ApiServer, router: RunningGateway) -> None:
    weigh(cluster, 1, 1, "prefix")
    await until(lambda: router.router.fleet.deployments["default/old"].policy == "prefix")
    body = BODY.replace(b"hi", b"x" * 2000)
    name = (await router.post(body)).headers["x-headwater-endpoint"]
    [endpoint] = [each for each in router.router.fleet if each.name == name]
    target: Target = endpoint.targets[0]
    index = router.router._index
    assert index.size().dispatched > 0
    cluster.remove(pod(name, ENGINES[name]))
    await until(lambda: endpoint not in list(router.router.fleet))
    assert index.size().dispatched == 0, target.id
