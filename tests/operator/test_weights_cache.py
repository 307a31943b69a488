"""The platform's cache: weights are fetched once, for all, and nothing of a tenant's is in what others read."""

from typing import Any

import pytest
from pydantic import ValidationError

from headwater_operator.cluster.kinds import Key, Object
from headwater_operator.config import OperatorSettings
from headwater_operator.render import weights_cache as rendering
from tests.operator.world import World

HUB = "hf://lab/small"
SHARE = {"csi": {"driver": "share", "volumeHandle": "nas#$(NAMESPACE)"}, "mountOptions": ["nconnect=8"]}
CACHE: Object = {"namespace": "models", "models": ["hf://lab/*@main"], "volume": SHARE, "secret": "hub"}
NAME = "headwater-weights-cache"
TEAMS = ("red", "blue")


class Teams:
    """A ModelDeployment `m` in each of two namespaces, and the binding of volumes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.world = World(monkeypatch, weights_cache=CACHE, default_env={"HF_ENDPOINT": "http://mirror"}, **settings)
        self.cluster = self.world.cluster

    def create(self, team: str, name: str = "m", **spec: Any) -> None:
        backend = {"type": "headwater", **spec.pop("backend", {})}
        model = {"source": HUB, **spec.pop("model", {})}
        self.cluster.add(
            {
                "apiVersion": "headwater.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": team},
                "spec": {"model": model, "backend": backend, **spec},
            }
        )

    async def settle(self) -> None:
        for _ in range(40):
            before = self.cluster.version
            for team in TEAMS:
                self.world.deliver()
                await self.world.reconciler.reconcile(Key(team, "m"))
            self.bind()
            if self.cluster.version == before:
                return
        raise AssertionError("it never comes to rest")

    def bind(self) -> None:
        for volume in self.cluster.all("PersistentVolume"):
            wanted = volume["spec"]["claimRef"]
            claim = self.cluster.objects.get(("PersistentVolumeClaim", wanted["namespace"], wanted["name"]))
            if claim is not None and "uid" not in wanted and claim["status"]["phase"] != "Bound":
                reference = {"spec": {"claimRef": {"uid": claim["metadata"]["uid"]}}, "status": {"phase": "Bound"}}
                self.cluster.merge("PersistentVolume", volume["metadata"]["name"], reference, namespace="")
                self.cluster.merge(
                    "PersistentVolumeClaim", NAME, {"status": {"phase": "Bound"}}, namespace=wanted["namespace"]
                )

    def finish(self) -> None:
        (job,) = self.cluster.all("Job")
        ended = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
        self.cluster.merge("Job", job["metadata"]["name"], ended, namespace=job["metadata"]["namespace"])

    def mounted(self, team: str) -> Object:
        deployment = self.cluster.objects["Deployment", team, "m"]
        volumes = deployment["spec"]["template"]["spec"]["volumes"]
        (found,) = (each["persistentVolumeClaim"] for each in volumes if each["name"] == "weights")
        return found  # type: ignore[no-any-return]

    def weights(self, team: str) -> Object:
        return self.cluster.objects["ModelDeployment", team, "m"]["status"]["weights"]  # type: ignore[no-any-return]


@pytest.fixture
def teams(monkeypatch: pytest.MonkeyPatch) -> Teams:
    return Teams(monkeypatch)


async def filled(teams: Teams) -> None:
    for team in TEAMS:
        teams.create(team)
    await teams.settle()
    teams.finish()
    await teams.settle()


async def test_what_two_namespaces_ask_for_is_fetched_once_and_read_by_both(teams: Teams) -> None:
    for team in TEAMS:
        teams.create(team)
    await teams.settle()
    (job,) = teams.cluster.all("Job")
    assert job["metadata"]["namespace"] == "models"
    assert teams.weights("red")["phase"] == teams.weights("blue")["phase"] == "Filling"
    teams.finish()
    await teams.settle()
    for team in TEAMS:
        assert teams.mounted(team) == {"claimName": NAME, "readOnly": True}
        assert teams.weights(team)["phase"] == "Filled"
    teams.cluster.calls.clear()
    await teams.settle()
    assert teams.cluster.calls == [], "at rest it costs no call"


async def test_a_team_that_comes_later_has_nothing_fetched_whatever_became_of_the_job(teams: Teams) -> None:
    teams.create("red")
    teams.world.deliver()
    for _ in range(5):
        await teams.world.reconciler.reconcile(Key("red", "m"))
        teams.bind()
        teams.world.deliver()
    teams.finish()
    teams.world.deliver()
    await teams.world.reconciler.reconcile(Key("red", "m"))
    teams.cluster.remove(teams.cluster.all("Job")[0])
    await teams.world.restart()
    teams.create("blue")
    await teams.settle()
    assert teams.mounted("blue") == {"claimName": NAME, "readOnly": True}
    assert teams.cluster.all("Job") == []


async def test_volumes_of_tenants_cannot_be_written_and_have_a_handle_of_their_own(teams: Teams) -> None:
    await filled(teams)
    volumes = {each["spec"]["claimRef"]["namespace"]: each["spec"] for each in teams.cluster.all("PersistentVolume")}
    assert volumes.keys() == {"models", *TEAMS}
    for namespace, spec in volumes.items():
        assert spec["csi"]["volumeHandle"] == f"nas#{namespace}"
        assert spec["mountOptions"] == ["nconnect=8"]
        assert spec["persistentVolumeReclaimPolicy"] == "Retain"
        writable = namespace == "models"
        assert spec["accessModes"] == (["ReadWriteMany"] if writable else ["ReadOnlyMany"])
        assert spec["csi"].get("readOnly", False) is not writable


async def test_nothing_that_a_tenant_says_is_part_of_what_others_read(teams: Teams) -> None:
    teams.create("red", backend={"env": {"HF_ENDPOINT": "http://evil"}}, template={"spec": {"serviceAccountName": "x"}})
    teams.create("blue")
    await teams.settle()
    (job,) = teams.cluster.all("Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"name": "HF_ENDPOINT", "value": "http://mirror"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "hub"}}], "the platform's, not a tenant's"
    assert "serviceAccountName" not in pod


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"secretRef": {"name": "token"}}},
        {"model": {"source": "hf://elsewhere/x"}},
        {"model": {"revision": "v2"}},
    ],
    ids=["with a token", "not listed", "another revision"],
)
async def test_what_the_platform_does_not_list_stays_in_its_namespace(teams: Teams, spec: Object) -> None:
    for team in TEAMS:
        teams.create(team, **spec)
    await teams.settle()
    assert {each["metadata"]["namespace"] for each in teams.cluster.all("Job")} <= set(TEAMS)
    assert {each["metadata"]["namespace"] for each in teams.cluster.all("PersistentVolumeClaim")} == set(TEAMS)
    assert teams.cluster.all("PersistentVolume") == []


async def test_what_the_platform_has_put_onto_the_share_itself_is_fetched_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teams = Teams(monkeypatch, weights_shared={"hf://elsewhere/x@main": f"{NAME}/x"})
    teams.create("red", model={"source": "hf://elsewhere/x"})
    teams.create("blue", model={"source": "hf://elsewhere/x"})
    await teams.settle()
    assert teams.cluster.all("Job") == []
    assert teams.mounted("red") == {"claimName": NAME, "readOnly": True}


async def test_a_claim_that_a_tenant_deletes_is_bound_anew(teams: Teams) -> None:
    await filled(teams)
    claim = teams.cluster.objects["PersistentVolumeClaim", "red", NAME]
    teams.cluster.remove(claim)
    await teams.settle()
    new = teams.cluster.objects["PersistentVolumeClaim", "red", NAME]
    assert new["metadata"]["uid"] != claim["metadata"]["uid"]
    assert new["status"]["phase"] == "Bound"
    assert teams.weights("red")["phase"] == "Filled"


NEVER = "Cannot bind to requested volume: requested PV is too small"


def condition(teams: Teams, kind: str, team: str = "red") -> tuple[str, str, str]:
    conditions = teams.cluster.objects["ModelDeployment", team, "m"]["status"]["conditions"]
    found = next(each for each in conditions if each["type"] == kind)
    return found["status"], found["reason"], found["message"]


async def pass_by(teams: Teams, seconds: float) -> None:
    """Without anybody who binds claims."""
    teams.world.clock.passed += seconds
    for _ in range(3):
        teams.world.deliver()
        await teams.world.reconciler.reconcile(Key("red", "m"))


@pytest.mark.parametrize("said", [NEVER, None])
@pytest.mark.parametrize("where", ["models", "red"])
async def test_a_claim_that_is_never_bound_is_told_of_after_a_minute(
    teams: Teams, where: str, said: str | None
) -> None:
    teams.create("red")
    await pass_by(teams, 0)
    if where == "red":
        await teams.settle()
        teams.finish()
        await pass_by(teams, 0)
    assert teams.weights("red")["message"] == f"the cache's volume in {where} is made"
    assert condition(teams, "Degraded")[1] == "AsExpected"
    claim = teams.cluster.objects["PersistentVolumeClaim", where, NAME]
    if said is not None:
        about = {"kind": claim["kind"], "name": NAME, "uid": claim["metadata"]["uid"]}
        event = {"reason": "VolumeMismatch", "message": said, "type": "Warning", "involvedObject": about, "count": 0}
        metadata = {"name": "never", "namespace": where}
        teams.cluster.add({"apiVersion": "v1", "kind": "Event", "metadata": metadata} | event)
    await pass_by(teams, 61)
    status, reason, message = condition(teams, "Degraded")
    assert (status, reason) == ("True", "VolumePending")
    assert (said or f"in {where} is not bound") in message and "operator.settings.weights_cache" in message
    assert "spec.weights.storageClassName" not in message, "which would change nothing"
    assert teams.weights("red")["phase"] == "Pending" and teams.weights("red")["message"] == message
    assert condition(teams, "Ready")[1] == "VolumePending"
    await teams.settle()  # with somebody who binds
    assert condition(teams, "Degraded")[1] == "AsExpected"


async def test_a_claim_that_has_lost_its_storage_says_what_to_delete(teams: Teams) -> None:
    teams.create("red")
    await pass_by(teams, 0)
    teams.cluster.merge("PersistentVolumeClaim", NAME, {"status": {"phase": "Lost"}}, namespace="models")
    await pass_by(teams, 1)
    _, reason, message = condition(teams, "Degraded")
    assert reason == "WeightsFailed"
    assert f"in models has lost its storage; delete PersistentVolumeClaim {NAME} there" in message


async def test_a_claim_that_more_use_than_it_can_name_is_kept(teams: Teams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MOST_OWNERS", 1)
    await filled(teams)
    teams.create("red", name="n")
    for _ in range(3):
        for name in ("m", "n"):
            teams.world.deliver()
            await teams.world.reconciler.reconcile(Key("red", name))
    teams.cluster.calls.clear()
    await teams.settle()
    assert teams.cluster.writes() == [], "they do not take turns"
    for name in ("m", "n"):
        teams.cluster.remove(teams.cluster.objects["ModelDeployment", "red", name])
    teams.cluster.collect_garbage()
    assert ("PersistentVolumeClaim", "red", NAME) in teams.cluster.objects


async def test_that_the_claim_of_a_namespace_is_bound_wakes_its_users(teams: Teams) -> None:
    await filled(teams)
    claim = teams.cluster.objects["PersistentVolumeClaim", "red", NAME]
    assert teams.world.controller._concerned(claim) == [Key("red", "m")]


async def test_the_volume_of_a_namespace_goes_with_its_last_user_and_what_is_fetched_stays(teams: Teams) -> None:
    await filled(teams)
    teams.cluster.remove(teams.cluster.objects["ModelDeployment", "red", "m"])
    teams.cluster.collect_garbage()
    assert ("PersistentVolumeClaim", "red", NAME) not in teams.cluster.objects
    released = {"status": {"phase": "Released"}}
    teams.cluster.merge("PersistentVolume", f"{NAME}-red", released, namespace="")
    await teams.world.reconciler.sweep()
    left = {each["metadata"]["name"] for each in teams.cluster.all("PersistentVolume")}
    assert left == {f"{NAME}-models", f"{NAME}-blue"}
    assert ("PersistentVolumeClaim", "models", NAME) in teams.cluster.objects


async def test_that_the_fetch_is_done_wakes_who_waits_in_every_namespace(teams: Teams) -> None:
    for team in TEAMS:
        teams.create(team)
    await teams.settle()
    teams.finish()
    (job,) = teams.cluster.all("Job")
    assert set(teams.world.controller._concerned(job)) == {Key(team, "m") for team in TEAMS}


@pytest.mark.parametrize(
    "given",
    [
        {"namespace": "models", "models": ["hf://*"]},
        {"namespace": "models", "models": [], "volume": SHARE},
        {"namespace": "models", "models": ["hf://*"], "volume": SHARE, "size": "1Ti"},
        {"namespace": "models", "models": ["hf://*"], "volume": SHARE | {"claimRef": {}}},
        {"models": ["hf://*"], "volume": SHARE},
    ],
)
def test_a_cache_says_where_it_is_and_of_what(given: Object) -> None:
    with pytest.raises(ValidationError):
        OperatorSettings(weights_cache=given)


def test_an_operator_of_some_namespaces_has_no_cache() -> None:
    with pytest.raises(ValidationError, match="all namespaces"):
        OperatorSettings(weights_cache=CACHE, namespaces=["red"])
