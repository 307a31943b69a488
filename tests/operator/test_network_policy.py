"""Who may connect to engines: routers, and those who are named beside them; nobody else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import Object, uid_of
from headwater_operator.config import OperatorSettings
from headwater_operator.render import Access, Manifest, render
from tests.operator.rendering import context, deployment, deployments
from tests.operator.world import World

ROUTERS: Object = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "system"}},
    "podSelector": {"matchLabels": {"component": "router"}},
}
OPERATOR: Object = ROUTERS | {"podSelector": {"matchLabels": {"component": "operator"}}}
ACCESS = Access([ROUTERS], [OPERATOR])
KEPT_OUT = {"engine_routers": [ROUTERS], "engine_clients": [OPERATOR]}


def policy(wanted: ModelDeployment, *, events: bool = False) -> Manifest:
    made = context(wanted, access=ACCESS, kv_events=events)
    (found,) = [each for each in render(wanted, made) if each["kind"] == "NetworkPolicy"]
    return found


def allowed(found: Manifest, peer: Object) -> set[int | None]:
    """The ports that a peer reaches; None stands for all."""
    reached: set[int | None] = set()
    for rule in found["spec"]["ingress"]:
        if peer in rule["from"]:
            reached |= {port["port"] for port in rule["ports"]} if "ports" in rule else {None}
    return reached


@given(deployments(), st.booleans())
def test_each_reaches_what_it_has_a_use_for(wanted: ModelDeployment, events: bool) -> None:
    found = policy(wanted, events=events)
    # The defaults of the strategy are vLLM's: it repeats them, too, and its ranks have ports one after the other.
    assert allowed(found, ROUTERS) == ({8000, 5557, 5757} if events else {8000})
    ranges = {port["port"]: port.get("endPort") for rule in found["spec"]["ingress"] for port in rule.get("ports", [])}
    assert ranges.get(5557) == (5557 + 63 if events else None)
    assert allowed(found, OPERATOR) == {8000}
    assert found["spec"]["policyTypes"] == ["Ingress"], "what engines connect to is not its matter"


@given(deployments())
def test_pods_reach_one_another_where_they_are_a_group(wanted: ModelDeployment) -> None:
    found = policy(wanted)
    own = {"podSelector": found["spec"]["podSelector"]}
    assert allowed(found, own) == ({None} if wanted.spec.parallelism.nodes > 1 else set())


@given(deployments())
def test_no_rule_lets_everybody_in(wanted: ModelDeployment) -> None:
    for rule in policy(wanted, events=True)["spec"]["ingress"]:
        assert rule["from"] and all(rule["from"])


def test_it_selects_the_engines_whatever_their_revision_and_no_job() -> None:
    selected = policy(deployment("vllm"))["spec"]["podSelector"]["matchLabels"]
    assert selected == {"headwater.dev/deployment": "m", "app.kubernetes.io/component": "engine"}


def test_it_is_there_before_a_pod_can_be() -> None:
    wanted = deployment("vllm")
    kinds = [each["kind"] for each in render(wanted, context(wanted, access=ACCESS))]
    assert kinds.index("NetworkPolicy") < kinds.index("Deployment")


def test_events_that_are_not_published_have_no_port_anywhere() -> None:
    wanted = deployment("vllm")
    assert "5557" not in str(render(wanted, context(wanted, access=ACCESS, kv_events=False)))


# In the cluster


@pytest.mark.parametrize("spec", [{}, {"backend": {"type": "vllm"}, "parallelism": {"tensor": 2, "nodes": 2}}])
async def test_it_comes_with_the_resource_is_put_right_and_goes(monkeypatch: pytest.MonkeyPatch, spec: Object) -> None:
    world = World(monkeypatch, **KEPT_OUT)
    world.create(**spec)
    await world.settle()
    before = world.child("NetworkPolicy", "m-engine")
    world.cluster.merge("NetworkPolicy", "m-engine", {"spec": {"ingress": [{}]}})
    await world.settle()
    assert world.child("NetworkPolicy", "m-engine")["spec"] == before["spec"]
    await world.at_rest()
    world.delete()
    await world.settle()
    assert world.cluster.all("NetworkPolicy") == []


async def test_switching_it_on_or_off_restarts_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.create(replicas=2)
    await world.settle()
    engines = {uid_of(pod) for pod in world.kube.pods()}
    assert world.cluster.all("NetworkPolicy") == []
    await world.restart(**KEPT_OUT)
    await world.settle()
    assert len(world.cluster.all("NetworkPolicy")) == 1
    await world.restart(engine_routers=[], engine_clients=[])
    await world.settle()
    assert world.cluster.all("NetworkPolicy") == []
    assert {uid_of(pod) for pod in world.kube.pods()} == engines


# The settings


def test_peers_are_json_on_the_command_line_and_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_OPERATOR_ENGINE_ROUTERS", '[{"podSelector": {}}]')
    settings = OperatorSettings(engine_clients=['{"ipBlock": {"cidr": "10.0.0.0/8"}}'])  # type: ignore[list-item]
    assert Access.of(settings) == Access([{"podSelector": {}}], [{"ipBlock": {"cidr": "10.0.0.0/8"}}])


@pytest.mark.parametrize("peer", ["{}", '{"podSelektor": {}}', "router", "[]", '{"podSelector": {}, "ports": []}'])
def test_a_peer_that_would_let_in_more_than_was_meant_is_refused(peer: Any) -> None:
    with pytest.raises(ValidationError):
        OperatorSettings(engine_routers=[peer])
