"""The status says what is so, of the current revision, and a change of it once."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater_operator.cluster.kinds import Object
from headwater_operator.diagnose.pods import EnginePod, Problem
from headwater_operator.reconcile.status import Situation, news, status_of
from tests.operator.objects import NOW, container, pod, written

NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
CRASH = Problem("CrashLoop", "container engine ends again and again")
TYPES = ["Ready", "Progressing", "Degraded", "ModelLoaded", "Routable"]
LATER = NOW + timedelta(minutes=5)

STARTING = EnginePod.of(pod(containers=[container(waiting={"reason": "ContainerCreating"})]))
LOADING = EnginePod.of(pod(containers=[container(running={})]))
UNPLACED = EnginePod.of(pod(unschedulable=NO_GPU))
OLD_ONE = EnginePod.of(pod(revision="old", ready=True, containers=[container(running={})]))


def situation(**changes: Any) -> Situation:
    known: dict[str, Any] = {"generation": 3, "name": "m", "wanted": 2, "revision": "new"}
    return Situation(**(known | changes))


def replicas(new: int, *, ready: int = 0, old: int = 0, old_ready: int | None = None) -> dict[str, int]:
    """`old_ready` None: all of them."""
    serving = ready + (old if old_ready is None else old_ready)
    return {"total": new + old, "updated": new, "ready": serving, "ready_updated": ready}


def conditions(status: Object) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in status["conditions"]}


def said(status: Object) -> str:
    """What is True, and each reason."""
    return " ".join(
        f"{each['type']}={each['reason']}" if each["status"] == "True" else f"{each['type']}!{each['reason']}"
        for each in status["conditions"][:3]
    )


@pytest.mark.parametrize(
    ("changes", "phase", "expected"),
    [
        pytest.param({}, "Pending", "Ready!Loading Progressing=Loading Degraded!AsExpected", id="just made"),
        pytest.param(
            {"preparing": ("Downloading", "3 of 9 GiB")},
            "Downloading",
            "Ready!Downloading Progressing=Downloading Degraded!AsExpected",
            id="weights come",
        ),
        pytest.param(
            {"preparing": ("Building", "an engine for TensorRT-LLM")},
            "Pending",
            "Ready!Building Progressing=Building Degraded!AsExpected",
            id="an engine is built",
        ),
        pytest.param(
            replicas(2) | {"pods": [STARTING]},
            "Pending",
            "Ready!Loading Progressing=Loading Degraded!AsExpected",
            id="images come",
        ),
        pytest.param(
            replicas(2) | {"pods": [STARTING, LOADING]},
            "Loading",
            "Ready!Loading Progressing=Loading Degraded!AsExpected",
            id="loading",
        ),
        pytest.param(
            replicas(2) | {"pods": [UNPLACED]},
            "Pending",
            "Ready!Unschedulable Progressing=Loading Degraded!AsExpected",
            id="no node",
        ),
        pytest.param(
            replicas(2, ready=1),
            "Loading",
            "Ready!Loading Progressing=Loading Degraded!AsExpected",
            id="half of it serves",
        ),
        pytest.param(
            replicas(2, ready=2),
            "Ready",
            "Ready=ReplicasReady Progressing!Settled Degraded!AsExpected",
            id="all is well",
        ),
        pytest.param(
            replicas(1, old=2) | {"pods": [OLD_ONE, STARTING]},
            "Loading",
            "Ready!Loading Progressing=RollingOut Degraded!AsExpected",
            id="the old ones serve in a rollout",
        ),
        pytest.param(
            replicas(1, old=1) | {"rollout": ("NoRoomForSurge", "one after the other")},
            "Loading",
            "Ready!Loading Progressing=NoRoomForSurge Degraded!AsExpected",
            id="a rollout says which way it takes",
        ),
        pytest.param(
            replicas(2, ready=2, old=1),
            "Ready",
            "Ready=ReplicasReady Progressing=RollingOut Degraded!AsExpected",
            id="an old one drains yet",
        ),
        pytest.param(
            replicas(3, ready=3),
            "Ready",
            "Ready=ReplicasReady Progressing=ScalingDown Degraded!AsExpected",
            id="scaling down",
        ),
        pytest.param(
            replicas(2) | {"problem": CRASH},
            "Failed",
            "Ready!CrashLoop Progressing!Stopped Degraded=CrashLoop",
            id="nothing comes up",
        ),
        pytest.param(
            replicas(1, old=2) | {"problem": CRASH},
            "Loading",
            "Ready!CrashLoop Progressing!Stopped Degraded=CrashLoop",
            id="a bad revision while the old serves",
        ),
        pytest.param(
            replicas(3, ready=2) | {"problem": CRASH},
            "Ready",
            "Ready=ReplicasReady Progressing=ScalingDown Degraded=CrashLoop",
            id="a problem beside enough that serve",
        ),
        pytest.param(
            replicas(2, ready=2) | {"paused": True},
            "Ready",
            "Ready=ReplicasReady Progressing!Paused Degraded!AsExpected",
            id="paused",
        ),
        pytest.param(
            {"wanted": 0},
            "ScaledToZero",
            "Ready!NoReplicas Progressing!Settled Degraded!AsExpected",
            id="zero by the spec",
        ),
        pytest.param(
            {"wanted": 0, "autoscaled": True},
            "ScaledToZero",
            "Ready=ScaledToZero Progressing!Settled Degraded!AsExpected",
            id="zero by the load",
        ),
        pytest.param(
            {"wanted": 1, "autoscaled": True},
            "Pending",
            "Ready!Loading Progressing=Loading Degraded!AsExpected",
            id="woken",
        ),
        pytest.param(
            {"wanted": 0} | replicas(1, ready=1),
            "Loading",
            "Ready!NoReplicas Progressing=ScalingDown Degraded!AsExpected",
            id="on its way to zero",
        ),
    ],
)
def test_situations(changes: dict[str, Any], phase: str, expected: str) -> None:
    status = status_of(situation(**changes), {}, NOW)
    assert (status["phase"], said(status)) == (phase, expected)


def test_pain_3_ready_speaks_of_the_current_revision_alone() -> None:
    status = status_of(situation(**replicas(0, old=2)), {}, NOW)
    found = conditions(status)
    assert found["Ready"]["status"] == "False" and "0 of 2" in status["message"]
    assert found["ModelLoaded"]["status"] == "True", "the old ones serve, which is said elsewhere"
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 0)


COUNTS = st.tuples(*[st.integers(0, 3)] * 4)
SITUATIONS = st.builds(
    lambda wanted, counts, problem, preparing, **others: situation(
        wanted=wanted,
        problem=problem,
        preparing=preparing,
        **replicas(counts[0], ready=min(counts[:2]), old=counts[2], old_ready=min(counts[2:])),
        **others,
    ),
    st.integers(0, 3),
    COUNTS,
    st.none() | st.just(CRASH),
    st.none() | st.just(("Downloading", "1 of 2 GiB")),
    autoscaled=st.booleans(),
    paused=st.booleans(),
    routable=st.sampled_from([True, False, None]),
    generation=st.integers(1, 9),
    pods=st.lists(st.sampled_from([STARTING, LOADING, UNPLACED, OLD_ONE]), max_size=2),
)


@given(SITUATIONS)
def test_the_parts_of_a_status_agree_with_one_another(it: Situation) -> None:
    status = status_of(it, {}, NOW)
    found = conditions(status)
    assert list(found) == TYPES
    ready = found["Ready"]["status"] == "True"
    assert not ready or it.ready_updated >= it.wanted
    assert not (ready and it.wanted and it.ready_updated == 0)
    assert (found["Degraded"]["status"] == "True") == (it.problem is not None)
    assert (found["ModelLoaded"]["status"] == "True") == (it.ready > 0)
    assert found["Routable"]["status"] == {True: "True", False: "False", None: "Unknown"}[it.routable]
    assert status["message"] == found["Ready"]["message"]
    assert not it.wanted or (status["phase"] == "Ready") == ready
    assert status["phase"] != "Failed" or (it.problem is not None and not it.ready)


@given(SITUATIONS)
def test_every_part_says_for_which_generation_it_holds(it: Situation) -> None:
    status = status_of(it, {}, NOW)
    assert status["observedGeneration"] == it.generation
    assert {each["observedGeneration"] for each in status["conditions"]} == {it.generation}


@given(SITUATIONS)
def test_the_same_situation_has_the_same_status_and_is_no_news(it: Situation) -> None:
    first = status_of(it, {}, NOW)
    second = status_of(it, first, LATER)
    assert second == first and news(second, first) == []


@given(SITUATIONS, SITUATIONS)
def test_a_condition_keeps_its_time_while_its_status_is_the_same(one: Situation, other: Situation) -> None:
    before = status_of(one, {}, NOW)
    after = status_of(other, before, LATER)
    for name, was in conditions(before).items():
        now = conditions(after)[name]
        expected = NOW if now["status"] == was["status"] else LATER
        assert now["lastTransitionTime"] == written(expected)


@settings(max_examples=50)
@given(SITUATIONS, SITUATIONS)
def test_news_is_what_changed_and_only_once(one: Situation, other: Situation) -> None:
    before = status_of(one, {}, NOW)
    after = status_of(other, before, LATER)
    expected = []
    for name, level in (("Ready", "Normal"), ("Progressing", "Normal"), ("Degraded", "Warning")):
        was, now = conditions(before)[name], conditions(after)[name]
        if now["status"] == "True" and (was["status"], was["reason"]) != ("True", now["reason"]):
            expected.append((level, now["reason"], now["message"]))
    assert news(after, before) == expected
    assert news(status_of(other, after, LATER), after) == []


def test_a_failure_is_told_and_so_is_the_next_one() -> None:
    well = status_of(situation(**replicas(2, ready=2)), {}, NOW)
    assert ("Normal", "ReplicasReady", "2 of 2 replicas of the current revision are ready") in news(well, {})
    bad = status_of(situation(**replicas(2, ready=1), problem=CRASH), well, LATER)
    assert news(bad, well) == [("Warning", "CrashLoop", CRASH.message)]
    worse = status_of(situation(**replicas(2), problem=Problem("ImagePullFailed", "no such image")), bad, LATER)
    assert news(worse, bad) == [("Warning", "ImagePullFailed", "no such image")]


def test_what_is_not_known_is_left_out_and_what_others_add_is_kept() -> None:
    status = status_of(situation(extra={"adapters": [{"name": "a", "loaded": True}]}), {"url": "http://gone"}, NOW)
    assert status["adapters"] == [{"name": "a", "loaded": True}]
    assert not {"url", "backend", "renderVersion"} & status.keys()
    known = situation(url="http://gateway", backend="vllm", render_version=1)
    assert {"http://gateway", "vllm", 1} <= {
        each for each in status_of(known, {}, NOW).values() if isinstance(each, str | int)
    }


def test_the_selector_finds_the_engines_for_an_autoscaler() -> None:
    selector = status_of(situation(), {}, NOW)["selector"]
    assert dict(part.split("=") for part in selector.split(",")).items() <= pod()["metadata"]["labels"].items()


@pytest.mark.parametrize("autoscaled", [True, False])
def test_a_spec_that_is_refused_is_not_told_as_zero_replicas(autoscaled: bool) -> None:
    """reconcile.py leaves wanted at 0 where the spec cannot be read."""
    it = Situation(1, "m", autoscaled=autoscaled, problem=Problem("InvalidSpec", "spec.model: no"))
    found = {each["type"]: each for each in status_of(it, {}, NOW)["conditions"]}
    assert found["Ready"]["reason"] == "InvalidSpec"
    assert found["Progressing"]["reason"] != "Settled"


def test_on_the_way_to_zero_by_load_it_is_not_the_spec_that_says_zero() -> None:
    it = Situation(1, "m", autoscaled=True, total=1, updated=1, ready=1, ready_updated=1)
    assert "spec.replicas" not in str(status_of(it, {}, NOW)["message"])


def test_zero_by_load_while_weights_come_is_not_the_phase_ready() -> None:
    it = Situation(1, "m", autoscaled=True, preparing=("Downloading", "1 of 9 GiB"))
    assert status_of(it, {}, NOW)["phase"] in ("Downloading", "ScaledToZero")


def test_paused_with_another_revision_is_not_loading() -> None:
    it = Situation(1, "m", wanted=2, paused=True, total=2, ready=2)
    status = status_of(it, {}, NOW)
    assert status["conditions"][0]["reason"] == "Paused"
