"""Surge where there is room, Replace where there is none, and never the other one where the resource says which."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_operator.cluster.kinds import Key, Object
from headwater_operator.diagnose.pods import EnginePod
from headwater_operator.reconcile.rollout import PATIENCE, Endings, choose, ending, rolling, unplaced
from tests.operator.objects import NOW, ago, deployment, pod, written

NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
NO_NODE = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."


def old(**changes: object) -> EnginePod:
    return EnginePod.of(pod("m-old", revision="old", ready=True, **changes))  # type: ignore[arg-type]


def new(*, waited: float | None = None, **changes: object) -> EnginePod:
    """`waited`: seconds without a node."""
    if waited is not None:
        changes |= {"unschedulable": NO_GPU, "created": ago(waited)}
    return EnginePod.of(pod("m-new", **changes))  # type: ignore[arg-type]


LONG = PATIENCE + 1


@pytest.mark.parametrize(
    ("workload", "pods", "strategy", "requeue_after"),
    [
        pytest.param(None, [], "Surge", None, id="nothing there yet"),
        pytest.param(deployment(2), [new(ready=True), new(ready=True)], "Surge", None, id="at rest"),
        pytest.param(deployment(2), [old(), old()], "Surge", None, id="about to begin"),
        pytest.param(deployment(2), [old(), old(), new()], "Surge", None, id="the surge has a node"),
        pytest.param(deployment(2), [old(), old(), new(waited=2)], "Surge", PATIENCE - 2, id="patience"),
        pytest.param(deployment(2), [old(), old(), new(waited=PATIENCE)], "Replace", None, id="patience is over"),
        pytest.param(
            deployment(2), [old(), new(waited=3), new(waited=LONG)], "Replace", None, id="the longest wait counts"
        ),
        pytest.param(deployment(2), [new(ready=True), new(waited=LONG)], "Surge", None, id="no old one could go"),
        pytest.param(deployment(2), [old(deleted=NOW), new(waited=LONG)], "Surge", None, id="the old one goes already"),
        pytest.param(
            deployment(2), [old(), new(waited=LONG, deleted=NOW)], "Surge", None, id="the new one is to go itself"
        ),
        pytest.param(
            deployment(2),
            [old(), old(deleted=ago(-30)), new(waited=LONG)],
            "Surge",
            30,
            id="what one leaves is awaited",
        ),
        pytest.param(
            deployment(2), [old(), old(deleted=ago(1)), new(waited=LONG)], "Replace", None, id="but not a lost node"
        ),
        pytest.param(
            deployment(2), [old(), new(unschedulable=NO_NODE, created=ago(99))], "Surge", None, id="no room would help"
        ),
        pytest.param(
            deployment(1),
            [EnginePod.of(pod(revision="old", unschedulable=NO_GPU, created=ago(LONG))), new(ready=True)],
            "Surge",
            None,
            id="only an old one waits",
        ),
        pytest.param(deployment(2, surge=0), [old(), new()], "Replace", None, id="stays until it is over"),
        pytest.param(deployment(2, surge=0), [new(), new(ready=True)], "Replace", None, id="not over before all serve"),
        pytest.param(
            deployment(2, surge=0), [new(ready=True), new(ready=True), old()], "Replace", None, id="nor with old ones"
        ),
        pytest.param(
            deployment(2, surge=0), [new(ready=True), new(ready=True)], "Surge", None, id="over: surge next time"
        ),
    ],
)
def test_auto(workload: Object | None, pods: list[EnginePod], strategy: str, requeue_after: float | None) -> None:
    choice = choose("Auto", workload, pods, "new", NOW)
    assert (choice.strategy, choice.requeue_after) == (strategy, requeue_after)


def test_a_lack_of_room_is_told_in_the_schedulers_words() -> None:
    choice = choose("Auto", deployment(1), [old(), new(waited=LONG)], "new", NOW)
    assert choice.reason == "NoRoomForSurge" and NO_GPU in choice.message


def test_patience_begins_when_nothing_is_ending_any_more() -> None:
    """The scheduler takes a moment to give away what has become free."""
    pods = [old(), new(waited=100)]
    choice = choose("Auto", deployment(2), pods, "new", NOW, ago(3))
    assert (choice.strategy, choice.requeue_after) == ("Surge", PATIENCE - 3)
    assert choose("Auto", deployment(2), pods, "new", NOW, ago(PATIENCE)).strategy == "Replace"


def test_since_when_nothing_is_ending() -> None:
    endings, key, other, going = Endings(), Key("default", "m"), Key("default", "other"), [old(deleted=ago(-5))]
    assert endings.quiet_since(key, [], NOW) == NOW
    assert endings.quiet_since(key, [], ago(-9)) == NOW
    assert endings.quiet_since(key, going, ago(-10)) is None and endings.quiet_since(other, [], ago(-11)) == ago(-11)
    assert endings.quiet_since(key, [], ago(-12)) == ago(-12)
    endings.forget(key)
    assert endings.quiet_since(key, [], ago(-13)) == ago(-13)


PODS = st.builds(
    lambda revision, ready, waited, going: EnginePod.of(
        pod(
            revision=revision,
            ready=ready and waited is None,
            unschedulable=NO_GPU if waited is not None else None,
            created=ago(waited or 0),
            deleted=NOW if going else None,
        )
    ),
    st.sampled_from(["old", "older", "new"]),
    st.booleans(),
    st.none() | st.integers(0, 60),
    st.booleans(),
)
WORKLOADS = st.none() | st.builds(deployment, st.integers(0, 3) | st.none(), surge=st.sampled_from([0, 1]))


@given(WORKLOADS, st.lists(PODS, max_size=5))
def test_what_the_resource_says_is_done(workload: Object | None, pods: list[EnginePod]) -> None:
    assert choose("Surge", workload, pods, "new", NOW).strategy == "Surge"
    assert choose("Replace", workload, pods, "new", NOW).strategy == "Replace"


@given(WORKLOADS, st.lists(PODS, max_size=5))
def test_auto_takes_from_what_serves_only_for_a_pod_that_found_no_room(
    workload: Object | None, pods: list[EnginePod]
) -> None:
    choice = choose("Auto", workload, pods, "new", NOW)
    replacing = workload is not None and workload["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    if choice.strategy == "Replace":
        assert workload is not None and rolling(workload, pods, "new")
        waited = [(NOW - each.created).total_seconds() for each in unplaced(pods, "new")]
        old_ones = [each for each in pods if each.revision != "new" and not each.terminating]
        assert replacing or (old_ones and max(waited, default=0) >= PATIENCE)
    else:
        assert not (replacing and workload is not None and rolling(workload, pods, "new")), "it sticks until it is over"
    if choice.requeue_after is not None:
        assert 0 < choice.requeue_after <= PATIENCE
        then = choose("Auto", workload, pods, "new", NOW + timedelta(seconds=choice.requeue_after))
        assert then.strategy == "Replace", "time alone changes it then"


@dataclass
class Cluster:
    """A Deployment with its controller and a scheduler, a second a step; `slots` is how many pods have room."""

    slots: int
    wanted: int = 2
    load_time: int = 20
    drain: int = 5
    """Seconds that a pod takes to end."""
    workload: Object = field(default_factory=deployment)
    pods: list[Object] = field(default_factory=list)
    now: datetime = NOW
    revision: str = "0"
    strategies: list[str] = field(default_factory=list)
    least: int = 99
    endings: Endings = field(default_factory=Endings)

    def reconcile(self) -> None:
        pods = [EnginePod.of(each) for each in self.pods]
        quiet_since = self.endings.quiet_since(Key("default", "m"), ending(pods, self.now), self.now)
        choice = choose("Auto", self.workload, pods, self.revision, self.now, quiet_since)
        surge = int(choice.strategy == "Surge")
        self.workload["spec"]["replicas"] = self.wanted
        self.workload["spec"]["strategy"]["rollingUpdate"] = {"maxSurge": surge, "maxUnavailable": 1 - surge}
        if self.strategies[-1:] != [choice.strategy]:
            self.strategies.append(choice.strategy)

    def step(self) -> None:
        self.now += timedelta(seconds=1)
        for each in self.pods:
            if "on" not in each and sum("on" in other for other in self.pods) < self.slots:
                each["on"] = self.now
                each["status"]["conditions"][0] = {"type": "PodScheduled", "status": "True"}
            ready = (
                "on" in each
                and "deletionTimestamp" not in each["metadata"]
                and (self.now - each["on"]).total_seconds() >= self.load_time
            )
            each["status"]["conditions"][1]["status"] = str(ready)
        # After the scheduler: the operator hears of an end before the scheduler has given away what became free.
        self.pods = [each for each in self.pods if (gone := EnginePod.of(each).deleted) is None or gone > self.now]
        self.control()
        self.reconcile()
        self.least = min(self.least, self.ready())

    def control(self) -> None:
        """As the Deployment's controller does it: what does not serve goes first."""
        update = self.workload["spec"]["strategy"]["rollingUpdate"]
        pods = [each for each in self.pods if not EnginePod.of(each).terminating]
        olds = [each for each in pods if EnginePod.of(each).revision != self.revision]
        news = len(pods) - len(olds)
        for _ in range(max(min(self.wanted - news, self.wanted + update["maxSurge"] - len(pods)), 0)):
            name = f"m-{self.now.timestamp()}"
            self.pods.append(pod(name, revision=self.revision, unschedulable=NO_GPU, created=self.now))
        for each in sorted(olds, key=lambda each: EnginePod.of(each).ready):
            serving = EnginePod.of(each).ready
            if not serving or self.ready() > self.wanted - update["maxUnavailable"]:
                end = self.now + timedelta(seconds=self.drain if "on" in each else 0)
                each["metadata"]["deletionTimestamp"] = written(end)

    def ready(self) -> int:
        return sum(EnginePod.of(each).ready for each in self.pods)

    def done(self) -> bool:
        seen = [EnginePod.of(each) for each in self.pods]
        return len(seen) == self.wanted and all(each.ready and each.revision == self.revision for each in seen)

    def settle(self) -> None:
        for _ in range(300):
            self.step()
            if self.done():
                return
        raise AssertionError(f"it never ends: {self.pods}")

    def roll(self, revision: str) -> None:
        self.revision, self.least, self.strategies = revision, 99, []
        self.reconcile()


@pytest.mark.parametrize(
    ("slots", "strategies", "least"),
    [(3, ["Surge"], 2), (2, ["Surge", "Replace", "Surge"], 1)],
    ids=["room", "no room"],
)
@pytest.mark.parametrize("drain", [5, 60])
def test_pain_1_a_rollout_without_room_for_a_surge_goes_on(
    slots: int, strategies: list[str], least: int, drain: int
) -> None:
    cluster = Cluster(slots, drain=drain)
    cluster.settle()
    cluster.roll("1")
    cluster.settle()
    assert (cluster.strategies, cluster.least) == (strategies, least), "and the next one begins with a surge again"


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("after", [1, 8, 15, 30, 50])
def test_pain_4_a_revert_in_mid_rollout_leaves_what_serves_alone(slots: int, after: int) -> None:
    cluster = Cluster(slots)
    cluster.settle()
    cluster.roll("1")
    for _ in range(after):
        cluster.step()
    cluster.roll("0")
    cluster.settle()
    assert cluster.least >= (2 if slots == 3 else 1)
