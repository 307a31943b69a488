"""A namespace with volumes and Jobs of weights, for tests: what was applied, and what controllers do with it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import Object
from headwater_operator.config import OperatorSettings
from headwater_operator.reconcile.weights import Observed, WeightsPlan, needs_volume, plan
from headwater_operator.render.weights import volume
from headwater_operator.watch.specs import Sharing

START = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = "hf://owner/model"


def deployment(name: str = "chat", source: str = SOURCE, revision: str = "main", **spec: Any) -> ModelDeployment:
    model = {"source": source, "revision": revision} | spec.pop("model", {})
    return ModelDeployment.model_validate(
        {
            "apiVersion": "headwater.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": name},
            "spec": {"model": model, **spec},
        }
    )


@dataclass
class Cluster:
    """A namespace: what was applied, and what its controllers would do with it, one call at a time."""

    deployments: dict[str, ModelDeployment]
    claim: Object | None = None
    job: Object | None = None
    pods: list[Object] = field(default_factory=list)
    now: datetime = START
    made: list[str] = field(default_factory=list)
    settings: OperatorSettings = field(default_factory=OperatorSettings)

    def plan(self, uid: str = "u-chat") -> WeightsPlan:
        observed = Observed(self.claim, self.job, self.pods)
        its = self.deployments[uid]
        users = {
            uid: each for uid, each in self.deployments.items() if needs_volume(each) and volume(each) == volume(its)
        }
        return plan(its, Sharing(users), self.settings, "team", observed, self.now)

    def reconcile(self, uid: str = "u-chat") -> WeightsPlan:
        """As the operator does it."""
        made = self.plan(uid)
        for gone in made.delete:
            assert gone is self.job
            self.job, self.pods = None, []
        for manifest in made.manifests:
            self.apply(manifest)
        return made

    def apply(self, manifest: Object) -> None:
        created = {"uid": f"uid-{manifest['kind']}", "creationTimestamp": self.now.isoformat()}
        if manifest["kind"] == "Job":
            assert self.job is None, "a Job cannot be changed"
            self.job = {**manifest, "metadata": manifest["metadata"] | created, "status": {}}
            self.made.append("Job")
            return
        if self.claim is None:
            self.made.append("PersistentVolumeClaim")
            self.claim = {"status": {"phase": "Pending"}, "metadata": created}
        else:
            assert manifest["spec"] == self.claim["spec"], "a claim's spec cannot be changed"
        self.claim = self.claim | manifest | {"metadata": self.claim["metadata"] | manifest["metadata"]}
        if "ownerReferences" not in manifest["metadata"]:
            self.claim["metadata"].pop("ownerReferences", None)

    def bind(self) -> None:
        assert self.claim is not None
        self.claim["status"]["phase"] = "Bound"

    def end_pod(self, message: str, **ended: Any) -> None:
        assert self.job is not None
        self.now += timedelta(seconds=10)
        ended = {"exitCode": 1, "message": message, "finishedAt": self.now.isoformat()} | ended
        status = {"phase": "Failed", "containerStatuses": [{"name": "fetch", "state": {"terminated": ended}}]}
        self.add_pod(status)
        self.job["status"]["failed"] = self.job["status"].get("failed", 0) + 1

    def add_pod(self, status: dict[str, Any]) -> None:
        metadata = {
            "name": f"pod-{len(self.pods)}",
            "namespace": "team",
            "creationTimestamp": self.now.isoformat(),
            "ownerReferences": [{"uid": "uid-Job"}],
        }
        self.pods.append({"kind": "Pod", "metadata": metadata, "status": status})

    def end_job(self, condition: str, reason: str = "") -> None:
        assert self.job is not None
        self.job["status"]["conditions"] = [{"type": condition, "status": "True", "reason": reason, "message": "it"}]


def cluster(*deployments: ModelDeployment) -> Cluster:
    return Cluster({f"u-{each.name}": each for each in deployments or [deployment()]})
