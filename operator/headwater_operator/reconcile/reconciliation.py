"""What is known and found while one ModelDeployment is reconciled, from observation to status."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from headwater.resource import ModelDeployment
from headwater_operator.cluster.kinds import Key, Kind, Object, kind_of, name_of, namespace_of, uid_of
from headwater_operator.diagnose.pods import EnginePod
from headwater_operator.reconcile.group_plan import Group
from headwater_operator.reconcile.status import Situation


@dataclass(slots=True)
class Reconciliation:
    key: Key
    resource: Object
    deployment: ModelDeployment
    now: datetime
    situation: Situation
    """What will be said of it. Its parts add what they find."""
    pods: Sequence[EnginePod]
    exhausted: Sequence[Group] = ()
    """Groups that are broken, and were restarted too often."""
    kept: set[tuple[str, str]] = field(default_factory=set)
    """Kind and name of what there should be; the rest of what is ours goes."""
    again: float | None = None
    """Seconds until it is reconciled again, if nothing happens before."""

    @property
    def uid(self) -> str:
        return uid_of(self.resource)

    def keep(self, manifest: Object) -> None:
        self.kept.add((kind_of(manifest).name, name_of(manifest)))

    def keeps(self, kind: Kind, manifest: Object) -> bool:
        assert namespace_of(manifest) == self.key.namespace
        return (kind.name, name_of(manifest)) in self.kept

    def requeue_after(self, seconds: float | None) -> None:
        """The earliest one counts."""
        if seconds is not None:
            self.again = seconds if self.again is None else min(self.again, seconds)
