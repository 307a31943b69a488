"""Replicas that are several pods: one StatefulSet each, which live and die together.

A group is ready when all its pods are. Its ranks hold one communicator, so when one member is replaced or one container
restarts, the others can only hang: then all its pods are deleted and begin anew, later each time and not for ever.
What is known of a group lies on its StatefulSet: who its members are, how often it was restarted, and when.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from headwater.kubernetes import LABEL_GROUP, LABEL_REVISION
from headwater_operator.kinds import Object, annotations_of, labels_of
from headwater_operator.pods import EnginePod, parse_time
from headwater_operator.rollout import PATIENCE

MEMBERS: Final = "headwater.dev/members"
"""Annotation: UIDs of the group's pods, once all were there, apart by commas."""
RESTARTS: Final = "headwater.dev/restarts"
RESTARTED_AT: Final = "headwater.dev/restarted-at"

RESTART_BUDGET: Final = 8
"""A group that was restarted so often without being well for `_WELL_AFTER` between is left as it is."""
_WELL_AFTER: Final = timedelta(hours=1)
_FIRST_PAUSE: Final = timedelta(seconds=10)
_LONGEST_PAUSE: Final = timedelta(minutes=5)
_LOST_AFTER: Final = timedelta(seconds=30)
"""Past its grace, a pod that is still there has no kubelet to end it."""


@dataclass(frozen=True, slots=True)
class Group:
    """A StatefulSet with its pods."""

    workload: Object
    pods: Sequence[EnginePod]

    @property
    def number(self) -> int:
        return int(labels_of(self.workload)[LABEL_GROUP])

    @property
    def revision(self) -> str:
        return labels_of(self.workload)[LABEL_REVISION]

    @property
    def size(self) -> int:
        return int(self.workload["spec"]["replicas"])

    @property
    def complete(self) -> bool:
        return len(self.pods) == self.size and not any(pod.terminating for pod in self.pods)

    @property
    def ready(self) -> bool:
        return self.complete and all(pod.ready for pod in self.pods)

    @property
    def restarts(self) -> int:
        return int(annotations_of(self.workload).get(RESTARTS, 0))

    @property
    def exhausted(self) -> bool:
        """Whether it is not restarted any more."""
        return self.restarts >= RESTART_BUDGET


@dataclass(slots=True)
class GroupPlan:
    """What to do now."""

    create: list[int] = field(default_factory=list)
    """Numbers of groups of the current revision."""
    delete: list[Group] = field(default_factory=list)
    restart: list[Group] = field(default_factory=list)
    """Delete all their pods."""
    bury: list[EnginePod] = field(default_factory=list)
    """Delete these without grace: their node is lost."""
    remember: list[Group] = field(default_factory=list)
    """Note the members, which are all there."""
    look_again: float | None = None
    """Seconds until time alone may change it."""
    no_room: str | None = None
    """Why an old group had to go before a new one was ready."""


def gather(workloads: Sequence[Object], pods: Sequence[EnginePod]) -> list[Group]:
    """The groups that are there and not about to go, by number."""
    names = {workload["metadata"]["name"]: workload for workload in workloads}
    groups = [
        Group(workload, [pod for pod in pods if pod.name.rpartition("-")[0] == name])
        for name, workload in names.items()
        if "deletionTimestamp" not in workload["metadata"]
    ]
    return sorted(groups, key=lambda group: (group.revision, group.number))


def plan(
    groups: Sequence[Group],
    *,
    wanted: int,
    revision: str,
    strategy: Literal["Auto", "Surge", "Replace"],
    load: dict[str, int],
    now: datetime,
) -> GroupPlan:
    """`load`: requests in flight by pod; `wanted`: how many groups there should be."""
    result = GroupPlan()
    _plan_members(groups, now, result)
    _plan_count(groups, wanted, revision, strategy, load, now, result)
    for group in result.delete:
        if group in result.restart:
            result.restart.remove(group)
    return result


def _plan_members(groups: Sequence[Group], now: datetime, result: GroupPlan) -> None:
    for group in groups:
        result.bury += [pod for pod in group.pods if pod.deleted is not None and now - pod.deleted > _LOST_AFTER]
        known = set(filter(None, annotations_of(group.workload).get(MEMBERS, "").split(",")))
        present = {pod.uid for pod in group.pods if not pod.terminating}
        broken = bool(known) and (known != present or any(pod.restarts for pod in group.pods))
        if broken and not group.exhausted:
            pause = _pause_left(group, now)
            if pause:
                result.look_again = min(pause, result.look_again or pause)
            elif present & known:
                result.restart.append(group)
            elif group.complete:
                # All of them are new already.
                result.remember.append(group)
        elif not known and group.complete:
            result.remember.append(group)


def _pause_left(group: Group, now: datetime) -> float:
    """Seconds until the group may be restarted again."""
    last = annotations_of(group.workload).get(RESTARTED_AT)
    if last is None or not group.restarts:
        return 0.0
    pause: timedelta = min(_FIRST_PAUSE * 2 ** (group.restarts - 1), _LONGEST_PAUSE)
    return max((parse_time(last) + pause - now).total_seconds(), 0.0)


def counted_restart(group: Group, now: datetime) -> dict[str, str | None]:
    """The annotations of a group that is restarted now."""
    last = annotations_of(group.workload).get(RESTARTED_AT)
    well = last is None or now - parse_time(last) > _WELL_AFTER
    restarts = 1 if well else group.restarts + 1
    return {RESTARTS: str(restarts), RESTARTED_AT: now.isoformat(timespec="seconds"), MEMBERS: None}


def _plan_count(
    groups: Sequence[Group],
    wanted: int,
    revision: str,
    strategy: str,
    load: dict[str, int],
    now: datetime,
    result: GroupPlan,
) -> None:
    current = [group for group in groups if group.revision == revision]
    old = [group for group in groups if group.revision != revision]
    expendable = sorted(current, key=lambda group: (group.ready, _load(group, load), -group.number))
    result.delete += expendable[: max(len(current) - wanted, 0)]
    kept = [group for group in current if group not in result.delete]
    ready = sum(group.ready for group in kept)

    # Old groups that do not serve help nobody; of those that do, as many may go as the new ones make up for.
    serving = sorted((group for group in old if group.ready), key=lambda group: (_load(group, load), -group.number))
    result.delete += [group for group in old if not group.ready]
    released = max(len(serving) - max(wanted - ready, 0), 0)
    if serving and not released:
        no_room = _no_room(kept, now, result) if strategy == "Auto" else None
        if strategy == "Replace" and len(kept) == ready and ready + len(serving) >= wanted:
            released = 1
        elif no_room and len(kept) + len(serving) > wanted:
            released = 1
            result.no_room = no_room
    result.delete += serving[:released]

    surge = 0 if strategy == "Replace" else 1
    room = wanted + surge - len(kept) - (len(serving) - released)
    taken = {group.number for group in kept}
    free = (number for number in itertools.count() if number not in taken)
    result.create = list(itertools.islice(free, max(min(wanted - len(kept), room), 0)))


def _no_room(kept: Sequence[Group], now: datetime, result: GroupPlan) -> str | None:
    """Why a new group has been without room for long enough."""
    waiting = [pod for group in kept for pod in group.pods if pod.unschedulable and not pod.terminating]
    if not waiting:
        return None
    waited = max((now - pod.created).total_seconds() for pod in waiting)
    if waited >= PATIENCE:
        return waiting[0].unschedulable
    result.look_again = min(PATIENCE - waited, result.look_again or PATIENCE)
    return None


def _load(group: Group, load: dict[str, int]) -> int:
    """Unknown counts as busy."""
    return max((load.get(pod.name, 1 << 30) for pod in group.pods if pod.index == 0), default=0)
