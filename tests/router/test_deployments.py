"""What the objects of a cluster mean: pure, and the same whatever way led to them."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import backends
from headwater_router.endpoints.deployments import Deployment, Objects, World, served_by
from headwater_router.endpoints.endpoint import EndpointSpec, ServedModel
from headwater_router.endpoints.table import PodTable
from tests.router.cluster import Object, endpoint_slice, member, model, pod, table

KINDS = {"ModelDeployment": "modeldeployments", "EndpointSlice": "endpointslices", "Pod": "pods"}


def world(*objects: Object) -> World:
    """As if all had been listed at once."""
    known = Objects()
    for kind, plural in KINDS.items():
        known.listed(plural, None, told(*(each for each in objects if each["kind"] == kind)))
    return known.world()


def told(*objects: Object) -> list[Object]:
    """As the watches tell of them."""
    return [PodTable().read(table(each))[0] if each["kind"] == "Pod" else each for each in objects]


def test_a_deployment_is_known_by_its_names_before_it_has_a_pod() -> None:
    spec: dict[str, Any] = {
        "model": {"aliases": ["small", "tiny"]},
        "adapters": [{"name": "sql", "source": "hf://a/b"}],
    }
    [deployment] = world(model("m", "team", **spec, routing={"policy": "session", "weight": 20})).deployments
    assert deployment.key == "team/m"
    assert (deployment.names, deployment.adapters) == (("m", "small", "tiny"), ("sql",))
    assert (deployment.policy, deployment.weight, deployment.wakes) == ("session", 20, True)


def test_what_a_deployment_does_not_say_has_its_default() -> None:
    assert world(model()).deployments == (
        Deployment("default", "m", ("m",), (), "hf://org/weights", None, None, 100, True),
    )


def test_no_request_brings_back_what_was_scaled_to_nothing_by_hand() -> None:
    [deployment] = world(model(replicas=0)).deployments
    assert not deployment.wakes


def test_a_deployment_that_is_being_deleted_is_gone() -> None:
    ending = model()
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert world(ending, pod(), endpoint_slice(member(pod()))) == World()


def test_an_endpoint_is_a_ready_pod_in_a_slice_of_the_engine_service() -> None:
    found = world(model(), pod(), endpoint_slice(member(pod()), events_port=5557)).endpoints
    spec = EndpointSpec("http://10.0.0.1:8000", "m-1", "vllm", "tcp://10.0.0.1:5557", "uid-of-m-1", "default/m")
    assert found == {spec: True}


def test_without_a_port_for_kv_events_there_are_none() -> None:
    [spec] = world(model(), pod(), endpoint_slice(member(pod()))).endpoints
    assert spec.kv_events is None


def test_an_address_of_ipv6_stands_in_brackets() -> None:
    listed = endpoint_slice(member(pod(), "fd00:0::7"), events_port=5557, family="IPv6")
    [spec] = world(model(), pod(address="fd00::7"), listed).endpoints
    assert (spec.url, spec.kv_events) == ("http://[fd00::7]:8000", "tcp://[fd00::7]:5557")


def test_a_pod_of_both_address_families_is_one_endpoint() -> None:
    six = endpoint_slice(member(pod(), "fd00::7"), name="a", family="IPv6")
    four = endpoint_slice(member(pod(), "10.0.0.1"), name="b")
    assert [spec.url for spec in world(model(), pod(), six, four).endpoints] == ["http://10.0.0.1:8000"]


@pytest.mark.parametrize(
    ("its_pod", "conditions"),
    [
        (pod(), {"ready": False}),
        (pod(), {"ready": True, "terminating": True}),
        (pod(), {"ready": False, "serving": True, "terminating": True}),
        (pod(ending=True), {}),
    ],
    ids=["not ready", "terminating, published all the same", "draining", "its pod ends"],
)
def test_who_is_not_ready_stays_but_gets_nothing_new(its_pod: Object, conditions: dict[str, bool]) -> None:
    assert list(world(model(), its_pod, endpoint_slice(member(its_pod, **conditions))).endpoints.values()) == [False]


def test_who_says_nothing_of_being_ready_is() -> None:
    listed = member(pod())
    listed["conditions"] = {}
    assert list(world(model(), pod(), endpoint_slice(listed)).endpoints.values()) == [True]


def test_a_pod_in_two_slices_is_ready_where_one_of_them_says_so() -> None:
    slices = [endpoint_slice(member(pod(), ready=ready), name=f"s-{ready}") for ready in (False, True)]
    assert list(world(model(), pod(), *slices).endpoints.values()) == [True]


@pytest.mark.parametrize(
    "objects",
    [
        [pod(), endpoint_slice(member(pod()))],
        [model(), endpoint_slice(member(pod()))],
        [model(), pod()],
        [model(), pod(uid="another"), endpoint_slice(member(pod()))],
        [model(), pod(), endpoint_slice(member(pod()), namespace="other")],
        [model(), model(namespace="b"), pod(), endpoint_slice(member(pod()), namespace="b")],
        [model(), pod(), endpoint_slice(member(pod(), "10.0.0.2"))],
        [model(), pod(address=None), endpoint_slice(member(pod()))],
        [model(), pod(), endpoint_slice(member(pod()), port=99999)],
        [model(), pod(), endpoint_slice(member(pod()), service="m-workers")],
        [model(), pod(), endpoint_slice(member(pod()), port=None)],
        [model(), pod(), endpoint_slice(member(pod()), family="FQDN")],
        [model(), pod(backend="ollama"), endpoint_slice(member(pod()))],
    ],
    ids=["no deployment", "no pod", "no slice", "an earlier pod of the name", "another namespace",
         "another namespace's pod", "another address", "no address yet", "no port that there is", "the workers' slice",
         "no port for HTTP", "no address", "an unknown server"],
)  # fmt: skip
def test_what_is_no_endpoint(objects: list[Object]) -> None:
    assert world(*objects).endpoints == {}


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "127.0.0.1", "0.0.0.0", "224.0.0.1", "fe80::1", "::1", "::", "ff02::1",
     "::ffff:169.254.169.254", "::ffff:127.0.0.1", "fe80::1%eth0", "metadata.internal", ""],
)  # fmt: skip
def test_an_address_that_no_pod_can_have_is_not_believed_though_pod_and_slice_say_so(address: str) -> None:
    family = "IPv6" if ":" in address else "IPv4"
    its = pod(address=address)
    assert world(model(), its, endpoint_slice(member(its, address), family=family)).endpoints == {}


def test_a_slice_of_another_namespace_takes_no_pod_away() -> None:
    stolen = endpoint_slice(member(pod()), namespace="a", name="a")
    found = world(model(), model(namespace="a"), pod(), endpoint_slice(member(pod())), stolen).endpoints
    assert [spec.deployment for spec in found] == ["default/m"]


def test_a_new_pod_at_the_address_of_an_old_one_is_another_endpoint() -> None:
    old, new = pod(uid="old"), pod(uid="new")
    [before], [after] = (world(model(), each, endpoint_slice(member(each))).endpoints for each in (old, new))
    assert before.url == after.url
    assert before != after


@pytest.mark.parametrize(
    "odd",
    [{"spec": {}}, {"spec": {"model": None}}, {"spec": None}, {"spec": {"model": {"source": 1}, "adapters": [{}]}}],
    ids=str,
)
def test_an_object_that_makes_no_sense_is_as_good_as_gone(odd: Object) -> None:
    known = Objects()
    known.listed("modeldeployments", None, [model("m"), model("n")])
    known.changed("modeldeployments", model("m") | odd)
    assert [deployment.name for deployment in known.world().deployments] == ["n"]


# Whatever way led there


def objects_of(rng: random.Random) -> list[Object]:
    """A few objects with names from a small world, so that they refer to one another."""
    made: list[Object] = []
    for namespace in ("a", "b"):
        for name in ("m", "n"):
            if rng.random() < 0.6:
                made.append(model(name, namespace, routing={"weight": rng.randrange(3)}))
            pods = [
                pod(
                    f"{name}-{i}",
                    name,
                    namespace,
                    uid=f"{namespace}{name}{i}-{rng.randrange(2)}",
                    address=rng.choice([f"10.0.0.{i}", "10.0.0.9", None]),
                    ending=rng.random() < 0.3,
                )
                for i in range(3)
            ]
            made += [each for each in pods if rng.random() < 0.7]
            for number in range(2):
                if rng.random() < 0.6:
                    members = [member(each, f"10.0.0.{i}", ready=rng.random() < 0.7) for i, each in enumerate(pods)]
                    members = rng.sample(members, rng.randrange(4))
                    made.append(endpoint_slice(*members, name=f"{name}-{number}", deployment=name, namespace=namespace))
    return made


def key(each: Object) -> tuple[str, str, str]:
    return KINDS[each["kind"]], each["metadata"]["namespace"], each["metadata"]["name"]


@given(st.integers(0, 2**32))
def test_any_way_to_a_state_gives_what_a_fresh_list_of_it_gives(seed: int) -> None:
    rng = random.Random(seed)
    known, there = Objects(), {}
    for _ in range(rng.randrange(1, 5)):
        wanted = {key(each): each for each in objects_of(rng)}
        steps = [*there.keys() | wanted.keys()]
        rng.shuffle(steps)
        for step in steps:
            if step not in wanted:
                known.removed(step[0], told(there.pop(step))[0])
            else:
                known.changed(step[0], told(wanted[step])[0])
                there[step] = wanted[step]
            if rng.random() < 0.1:  # A watch that began anew, of one namespace or of all.
                plural, namespace = rng.choice([*KINDS.values()]), rng.choice([None, "a", "b"])
                again = [
                    each for (kind, place, _), each in there.items() if kind == plural and namespace in (None, place)
                ]
                known.listed(plural, namespace, told(*rng.sample(again, len(again))))
    assert known.world() == world(*there.values())


# Names


def served(deployment: Deployment, *own: ServedModel, backend: str = "vllm") -> dict[str, ServedModel]:
    return {each.name: each for each in served_by(deployment, backends.get(backend), own)}


def base(name: str) -> ServedModel:
    return ServedModel(name, name, "")


DEPLOYMENT = Deployment("default", "m", ("m", "small"), ("sql",), "hf://org/weights")


def test_a_server_that_knows_the_names_gets_them_as_they_are() -> None:
    assert served(DEPLOYMENT, base("m"), base("small")) == {
        "m": ServedModel("m", "m", ""),
        "small": ServedModel("small", "m", ""),
    }


def test_a_server_with_one_name_of_its_own_is_asked_by_that() -> None:
    assert {each.upstream for each in served(DEPLOYMENT, base("/weights")).values()} == {"/weights"}


def test_of_many_names_that_are_not_ours_the_weights_own_is_taken() -> None:
    own = [base("some/other"), base("org/weights"), base("third")]
    assert {each.upstream for each in served(DEPLOYMENT, *own).values()} == {"org/weights"}


def test_a_new_alias_is_served_before_the_server_knows_it() -> None:
    assert served(DEPLOYMENT, base("m"))["small"] == ServedModel("small", "m", "", upstream="m")


def test_a_server_that_does_not_say_what_it_serves_is_believed_to_know_the_names() -> None:
    assert {each.upstream for each in served(DEPLOYMENT).values()} == {""}


def test_a_server_that_answers_to_any_name_gets_the_one_that_was_asked_for() -> None:
    assert {each.upstream for each in served(DEPLOYMENT, base("/weights"), backend="tgi").values()} == {""}


@pytest.mark.parametrize("card", [ServedModel("sql", "m", "sql"), base("sql")], ids=["with a parent", "without"])
def test_an_adapter_is_served_where_it_is_loaded_and_only_there(card: ServedModel) -> None:
    assert served(DEPLOYMENT, base("m"), card)["sql"] == ServedModel("sql", "m", "sql")
    assert "sql" not in served(DEPLOYMENT, base("m"))


def test_an_adapter_that_was_loaded_while_it_runs_is_served_too() -> None:
    assert served(DEPLOYMENT, base("m"), ServedModel("new", "m", "new"))["new"].adapter == "new"


def test_an_adapter_that_is_loaded_at_the_start_need_not_be_listed() -> None:
    assert served(DEPLOYMENT, base("/weights"), backend="tgi")["sql"] == ServedModel("sql", "m", "sql")


def test_sglang_is_asked_for_an_adapter_together_with_its_model() -> None:
    own = [base("m"), ServedModel("sql", "m", "sql")]
    assert served(DEPLOYMENT, *own, backend="sglang")["sql"].upstream == "m:sql"


def test_what_else_a_server_could_serve_is_nobodys_business() -> None:
    assert set(served(DEPLOYMENT, base("m"), base("small"), base("org/weights"))) == {"m", "small"}
