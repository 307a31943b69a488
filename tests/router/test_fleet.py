"""Which endpoints answer to a name, what is said of it, and why nobody does."""

from headwater.names import Claimant, claims
from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.deployments import Deployment, World
from headwater_router.endpoints.endpoint import EndpointSpec, ServedModel
from headwater_router.endpoints.fleet import Fleet
from headwater_router.endpoints.readiness import Readiness

OLD, NEW = "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"


def fleet_of(*specs: EndpointSpec, deployments: tuple[Deployment, ...] = ()) -> Fleet:
    fleet = Fleet(lambda: Breaker(failures=1, window=1, open_for=1), lambda target: None)
    static = [spec for spec in specs if not spec.deployment]
    pods = {spec: True for spec in specs if spec.deployment}
    fleet.replace(static, World(deployments, pods, claims(each.claimant for each in deployments)))
    return fleet


def pod(deployment: str, name: str = "pod-0") -> EndpointSpec:
    return EndpointSpec(
        f"http://{deployment.replace('/', '-')}:1", name, "vllm", None, f"{deployment} {name}", deployment
    )


def deployed(namespace: str, name: str, *aliases: str, created: str = OLD) -> Deployment:
    claimant = Claimant(namespace, name, aliases, created)
    return Deployment(namespace, name, (name, *aliases), claimant=claimant)


def serve(fleet: Fleet, *models: ServedModel) -> None:
    for endpoint in fleet:
        fleet.mark_ready(endpoint, models)


def where(fleet: Fleet, model: str) -> list[str]:
    return [endpoint.spec.url for endpoint, _ in fleet.serving(model)]


M = ServedModel("m", "m", "")


def test_two_endpoints_of_one_name_are_two() -> None:
    fleet = fleet_of(EndpointSpec("http://h:1", "same"), EndpointSpec("http://h:2", "same"))
    serve(fleet, M)
    assert len({endpoint.targets[0].id for endpoint, _ in fleet.serving("m")}) == 2


def test_no_deployment_takes_over_what_endpoints_of_flags_serve() -> None:
    theft = deployed("a", "m", "fast")
    fleet = fleet_of(EndpointSpec("http://h:1", "static"), pod("a/m"), deployments=(theft,))
    serve(fleet, M, ServedModel("a/m", "m", ""))
    assert where(fleet, "m") == ["http://h:1"]
    assert where(fleet, "a/m") == ["http://h:1"]
    assert where(fleet, "fast") == ["http://a-m:1"]
    assert fleet.promised("m") == []
    assert fleet.models == ["a/m", "fast", "m"]


def test_an_adapter_that_no_resource_names_is_served_where_one_namespace_has_it() -> None:
    sql = ServedModel("sql", "m", "sql")
    alone = fleet_of(pod("a/m"), pod("b/n"), deployments=(deployed("a", "m"), deployed("b", "n")))
    first, second = alone
    alone.mark_ready(first, [M, sql])
    assert where(alone, "sql") == where(alone, "a/sql") == ["http://a-m:1"]
    alone.mark_ready(second, [ServedModel("n", "n", ""), sql])
    assert where(alone, "sql") == []
    assert (where(alone, "a/sql"), where(alone, "b/sql")) == (["http://a-m:1"], ["http://b-n:1"])


def test_an_adapter_that_an_engine_invents_takes_no_name_of_another_namespace() -> None:
    fleet = fleet_of(pod("a/m"), pod("b/n"), deployments=(deployed("a", "m"), deployed("b", "n", created=NEW)))
    _, second = fleet
    fleet.mark_ready(second, [ServedModel("n", "n", ""), ServedModel("m", "n", "m")])
    assert where(fleet, "m") == ["http://a-m:1"]


def test_the_long_name_is_hashed_as_the_short_one() -> None:
    fleet = fleet_of(pod("a/m"), deployments=(deployed("a", "m", "fast"),))
    serve(fleet, M)
    short, long = fleet.identity("fast"), fleet.identity("a/fast")
    assert short is not None
    assert long is not None
    assert (short.base, short.adapter) == (long.base, long.adapter) == ("m", "")
    [(_, served)] = fleet.serving("a/m")
    assert (served.upstream, served.base) == ("m", "m")
    assert fleet.models == ["fast", "m"], "each once"


def test_an_alias_that_is_the_long_name_of_the_same_deployment_is_served_once() -> None:
    fleet = fleet_of(pod("a/m"), deployments=(deployed("a", "m", "a/m"),))
    serve(fleet, M)
    assert where(fleet, "a/m") == ["http://a-m:1"]
    assert len(fleet.promised("a/m")) == 1


def test_the_card_of_a_model_is_what_all_its_endpoints_can_keep() -> None:
    fleet = fleet_of(*(EndpointSpec(f"http://h:{port}", f"h{port}") for port in (1, 2, 3)))
    for endpoint, length in zip(fleet, (8192, None, 4096), strict=True):
        fleet.mark_ready(endpoint, [ServedModel("m", "m", "", "", f"/w{length}", "vllm", length)])
    card = fleet.card("m", 7)
    assert card is not None
    assert (card.max_model_len, card.root, card.owned_by, card.created) == (4096, "/w8192", "vllm", 7)
    assert fleet.card("n", 7) is None


def test_a_card_of_a_deployment_says_what_its_engine_says_of_the_weights() -> None:
    fleet = fleet_of(pod("a/m"), deployments=(deployed("a", "m", "fast"),))
    serve(fleet, ServedModel("m", "m", "", "", "/weights", "vllm", 4096))
    for name in ("m", "fast", "a/m"):
        card = fleet.card(name, 0)
        assert card is not None
        assert (card.id, card.root, card.max_model_len, card.parent) == (name, "/weights", 4096, None)


def test_why_nobody_serves_a_model_is_said_of_a_few() -> None:
    fleet = fleet_of(*(EndpointSpec(f"http://h:{port}", f"h{port}") for port in range(1, 6)))
    assert fleet.why_not_ready("m").startswith("h1: it was not looked at yet; h2: ")
    assert fleet.why_not_ready("m").endswith(", and 2 more")
    serve(fleet, M)
    assert fleet.why_not_ready("m") == ""
    [first, *_] = fleet
    fleet.mark_unready(first, "503 on /ready: draining")
    assert fleet.why_not_ready("m") == "h1: 503 on /ready: draining"


def test_a_deployment_without_a_pod_says_so() -> None:
    assert fleet_of(deployments=(deployed("a", "m"),)).why_not_ready("m") == "it has no endpoint"


def test_an_endpoint_that_left_stays_gone_whatever_is_heard_of_it() -> None:
    fleet = fleet_of(EndpointSpec("http://h:1", "h"))
    [endpoint] = fleet
    fleet.mark_ready(endpoint, [M])
    fleet.replace([])
    for mark in (fleet.mark_late, fleet.mark_unready, fleet.mark_unreachable, fleet.mark_dead):
        mark(endpoint, "late news")
    fleet.mark_ready(endpoint, [M])
    assert (endpoint.readiness, endpoint.takes_requests) == (Readiness.GONE, False)
    assert fleet.serving("m") == []
