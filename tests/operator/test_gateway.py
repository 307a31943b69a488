"""The load as the routers report it: what is added up, and when it is only a part."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_operator.autoscaling import gateway
from headwater_operator.autoscaling.gateway import (
    DeploymentLoad,
    GatewayReport,
    RouterPage,
    ask_gateways,
    combine,
    deletion_costs,
    parse,
    router_urls,
)

CHAT = ("team", "chat")


def page(
    in_flight: int = 0, held: int = 0, ready: int = 1, pods: dict[str, int] | None = None, name: str = "chat"
) -> str:
    labels = f'{{deployment="{name}",namespace="team"}}'
    lines = [
        "# HELP headwater_router_deployment_in_flight Requests.",
        "# TYPE headwater_router_deployment_in_flight gauge",
        f"headwater_router_deployment_in_flight{labels} {in_flight}.0",
        f"headwater_router_deployment_held{labels} {held}.0",
        f"headwater_router_deployment_ready_endpoints{labels} {ready}.0",
        'headwater_router_overhead_seconds_bucket{le="0.1"} 5.0',
        *(f'headwater_router_endpoint_in_flight{{endpoint="{pod}"}} {n}.0' for pod, n in (pods or {}).items()),
    ]
    return "\n".join(lines) + "\n"


async def ask(*routers: Callable[[], Any] | str | int | Exception) -> GatewayReport:
    """A router is its page, a status, an error, or something to await."""

    async def answer(request: httpx.Request) -> httpx.Response:
        router = routers[int(request.url.host.removeprefix("router-"))]
        if isinstance(router, Exception):
            raise router
        if isinstance(router, int):
            return httpx.Response(router)
        if callable(router):
            await router()
        return httpx.Response(200, text=str(router))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        return await ask_gateways(client, [f"http://router-{n}:8080" for n in range(len(routers))], seconds=0.2)


async def test_the_load_is_the_sum_over_the_routers() -> None:
    report = await ask(page(3, 1, ready=2, pods={"a": 1, "b": 2}), page(4, 0, ready=1, pods={"a": 4, "b": 0}))
    assert report.complete
    assert report.deployments == {CHAT: DeploymentLoad(in_flight=7, held=1, ready_endpoints=1, complete=True)}
    assert report.pods == {"a": 5, "b": 2}


@pytest.mark.parametrize(
    ("router", "why"),
    [
        (httpx.ConnectError("connection refused"), "connection refused"),
        (503, "answered 503"),
        (asyncio.Event().wait, "no answer within 0.2 s"),
        ('headwater_router_deployment_held{namespace="team"', "not a metrics page"),
        ("headwater_router_deployment_held Inf", "not a metrics page"),
    ],
    ids=["refused", "error", "hangs", "malformed", "infinite"],
)
async def test_one_that_fails_makes_all_of_it_a_part(router: Any, why: str) -> None:
    report = await ask(page(3, 1, pods={"a": 3}), router)
    assert not report.complete
    assert report.deployments[CHAT] == DeploymentLoad(in_flight=3, held=1, ready_endpoints=1, complete=False)
    assert report.pods == {}, "what the other one sent to the pod is not known"
    assert [reason.startswith(why) for reason in report.failures.values()] == [True]


async def test_a_deployment_that_one_router_does_not_know_is_incomplete_by_itself() -> None:
    report = await ask(page(3) + page(0, name="other"), page(0, name="other"))
    assert report.complete
    assert not report.deployments[CHAT].complete
    assert report.deployments["team", "other"].complete


def split(percent: float, kind: str = "plain", model: str = "m") -> str:
    labels = f'{{class="{kind}",deployment="chat",model="{model}",namespace="team"}}'
    return f"headwater_router_deployment_share{labels} {percent / 100}\n"


async def test_shares_are_the_mean_of_the_routers_that_have_found_any() -> None:
    report = await ask(page() + split(40) + split(100, "long"), page() + split(60), page())
    assert report.shares == {CHAT: {("m", "plain"): 0.5, ("m", "long"): 1.0}}


@pytest.mark.parametrize("percent", [-1, 101, float("nan"), float("inf")])
async def test_a_share_that_is_none_makes_the_page_none(percent: float) -> None:
    report = await ask(page() + split(percent))
    assert not report.complete
    assert report.shares == {}


async def test_a_router_that_tells_only_half_of_a_deployment_did_not_report_it() -> None:
    half = "".join(line for line in page(3).splitlines(keepends=True) if "_held" not in line)
    assert not (await ask(page(3), half)).deployments[CHAT].complete


def test_a_page_that_says_what_it_said_before_is_the_same_and_a_series_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def page(other: int, held: int) -> str:
        kinds = ("in_flight", "held", "ready_endpoints")
        lines = [f'headwater_router_deployment_{kind}{{deployment="a b",namespace="n"}} {held}' for kind in kinds]
        return "\n".join([f"headwater_router_requests_total {other}", *lines, ""])

    read: list[str] = []
    families = gateway.text_string_to_metric_families
    monkeypatch.setattr(gateway, "text_string_to_metric_families", lambda text: read.append(text) or families(text))
    first = gateway.parse(page(1, 71))
    assert gateway.parse(page(2, 71)) is first, "what differs is nothing that is needed"
    assert gateway.parse(page(2, 72)).deployments["n", "a b"].held == 72
    assert len(read) == 3, "of series with another value only that is read"


async def test_at_rest_the_report_is_the_one_that_it_was() -> None:
    assert await ask(page(3), page(4)) is await ask(page(3), page(4))
    assert await ask(page(3), page(4)) is not await ask(page(3), page(5))


async def test_no_router_is_no_report() -> None:
    assert await ask() == GatewayReport(complete=False)


async def test_a_page_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater_operator.autoscaling.gateway._LARGEST_PAGE", 100)
    assert not (await ask(page(3))).complete


counts = st.integers(0, 1000)
pages = st.lists(
    st.builds(
        lambda loads, pods: RouterPage({("team", name): DeploymentLoad(*each) for name, each in loads.items()}, pods),
        st.dictionaries(st.sampled_from("abc"), st.tuples(counts, counts, counts)),
        st.dictionaries(st.sampled_from("xyz"), counts),
    ),
    max_size=4,
)


@given(pages)
def test_sums_never_say_more_than_is_known(pages: list[RouterPage]) -> None:
    report = combine(pages)
    assert report.complete == bool(pages)
    for name, load in report.deployments.items():
        assert load.complete == all(name in each.deployments for each in pages)
        assert load.in_flight == sum(each.deployments[name].in_flight for each in pages if name in each.deployments)
        assert all(load.ready_endpoints <= each.deployments[name].ready_endpoints for each in pages if load.complete)
    for pod, in_flight in report.pods.items():
        assert in_flight == sum(each.pods[pod] for each in pages)


@given(st.text(alphabet='headwater_router_deployment_held{}",= 1\n#', max_size=80))
def test_any_page_is_read_or_refused(text: str) -> None:
    for each in (text, "headwater_router_deployment_held" + text):
        with contextlib.suppress(ValueError, ArithmeticError):
            parse(each)


# Which routers there are


def endpoint_slice(kind: str, *endpoints: tuple[str, str, bool | None], port: str | None = "http") -> dict[str, Any]:
    return {
        "metadata": {"name": f"gateway-{kind.lower()}"},
        "addressType": kind,
        "ports": [{"name": port, "port": 8080}, {"name": "other", "port": 9}] if port else None,
        "endpoints": [
            {"addresses": [address], "conditions": {"serving": serving}, "targetRef": {"kind": "Pod", "name": pod}}
            for pod, address, serving in endpoints
        ],
    }


def test_routers_are_those_that_serve_and_each_is_asked_once() -> None:
    slices = [
        endpoint_slice("IPv6", ("a", "fd00::1", True), ("d", "fd00::4", True)),
        endpoint_slice("IPv4", ("a", "10.0.0.1", True), ("b", "10.0.0.2", None), ("c", "10.0.0.3", False)),
    ]
    assert router_urls(slices) == ["http://10.0.0.1:8080", "http://10.0.0.2:8080", "http://[fd00::4]:8080"]


def test_the_load_is_asked_for_at_the_admin_port_and_of_older_routers_where_they_serve() -> None:
    with_it = endpoint_slice("IPv4", ("a", "10.0.0.1", True))
    with_it["ports"] = [{"name": "http", "port": 8080}, {"name": "admin", "port": 9090}]
    without = endpoint_slice("IPv4", ("b", "10.0.0.2", True)) | {"metadata": {"name": "gateway-b"}}
    assert router_urls([without, with_it]) == ["http://10.0.0.1:9090", "http://10.0.0.2:8080"]


@pytest.mark.parametrize("port", [None, "https"])
def test_a_service_without_our_port_has_no_routers(port: str | None) -> None:
    assert router_urls([endpoint_slice("IPv4", ("a", "10.0.0.1", True), port=port)]) == []


def test_a_slice_of_a_service_without_pods_is_empty() -> None:
    assert router_urls([{"metadata": {"name": "a"}, "addressType": "IPv4", "ports": None, "endpoints": None}]) == []


# Which pods may go first


def pod(name: str, ready: bool) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def test_first_those_that_are_not_ready_then_the_idlest_last_the_unknown() -> None:
    pods = [
        pod("busy", True),
        pod("unknown", True),
        pod("idle", True),
        pod("loading", False),
        {"metadata": {"name": "new"}},
    ]
    costs = deletion_costs(pods, {"busy": 7, "idle": 0, "loading": 3})
    assert sorted(costs, key=lambda name: (costs[name], name)) == ["loading", "new", "idle", "busy", "unknown"]


@given(st.dictionaries(st.text("ab", min_size=1, max_size=4), st.tuples(st.booleans(), st.none() | counts)))
def test_the_cost_orders_pods_by_what_would_be_lost(pods: dict[str, tuple[bool, int | None]]) -> None:
    in_flight = {name: n for name, (_, n) in pods.items() if n is not None}
    costs = deletion_costs([pod(name, ready) for name, (ready, _) in pods.items()], in_flight)
    assert costs.keys() == pods.keys()
    assert all(-(2**31) <= cost < 2**31 for cost in costs.values())
    ready = [name for name, (ready, _) in pods.items() if ready]
    assert all(costs[name] == in_flight.get(name, 2**31 - 1) for name in ready)
    assert all(costs[name] < min((costs[each] for each in ready), default=0) for name in pods.keys() - set(ready))
