"""Replicas that are several pods: one StatefulSet each, which live and die together.

A group is ready when all its pods are. Its ranks hold one communicator, so when one member is replaced or one container
restarts, the others can only hang: then all its pods are deleted and begin anew, later each time and not for ever.
What is known of a group lies on its StatefulSet: who its members are, how often it was restarted, and when; and on one
that is to go, that its successors found no room beside it.
"""

import itertools
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from headwater.backoff import Backoff
from headwater.kubernetes import LABEL_GROUP, LABEL_REVISION
from headwater_operator.cluster.kinds import Object, annotations_of, labels_of, uid_of
from headwater_operator.diagnose.pods import STEADY, EnginePod, parse_time
from headwater_operator.reconcile import rollout
from headwater_operator.render.deployment import MIN_READY

MEMBERS: Final = "headwater.dev/members"
"""Annotation: UIDs of the group's pods, once all were there, apart by commas."""
RESTARTS: Final = "headwater.dev/restarts"
RESTARTED_AT: Final = "headwater.dev/restarted-at"
LAST_WORDS: Final = "headwater.dev/last-words"
"""Annotation: how the container ended for which the group was last restarted. The pod that told is gone by then."""
LOADING_SINCE: Final = "headwater.dev/loading-since"
"""Annotation: `LOADED` once all were ready, the time at which it began anew after that. There is none before."""
LOADED: Final = "loaded"
NO_ROOM: Final = "headwater.dev/no-room-for"
"""Annotation of an old group: the revision that found no room beside it, so that all of the rollout goes by Replace."""

RESTART_BUDGET: Final = 8
"""A group that was restarted so often, and was not well `_WELL_AFTER` any of these times, is left as it is."""
BROKEN_GRACE: Final = 5
"""Seconds that pods of a broken group get, for routers to learn of it: nothing can finish there."""
_WELL_AFTER: Final = timedelta(hours=1)
_PAUSES: Final = Backoff(10.0, 300.0)
_LONGEST_WORDS: Final = 1000
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

    def proven_in(self, now: datetime) -> float:
        """Seconds until it has been ready for so long that an old one may go: it may die of its first request."""
        if not self.ready:
            return math.inf
        since = max(pod.ready_since or pod.created for pod in self.pods)
        return max(MIN_READY - (now - since).total_seconds(), 0.0)

    @property
    def loading_since(self) -> datetime | None:
        """Since when it is on its way without having got there, over all of its restarts; None if it has."""
        noted = annotations_of(self.workload).get(LOADING_SINCE)
        return None if noted == LOADED else parse_time(noted or self.workload["metadata"]["creationTimestamp"])

    @property
    def begun(self) -> bool:
        """Whether each of its containers has run. Before, the others wait for one that has no room or no image yet."""
        return all(pod.running or pod.restarts for pod in self.pods)

    @property
    def draining(self) -> bool:
        """Whether a member was told to end and still runs: until it does end, answers can finish."""
        going = any(pod.terminating and pod.running for pod in self.pods)
        return going and not any(pod.restarts for pod in self.pods)

    @property
    def restarts(self) -> int:
        return int(annotations_of(self.workload).get(RESTARTS, 0))

    @property
    def pause(self) -> timedelta:
        """Between its last restart and the next."""
        return timedelta(seconds=_PAUSES.pause(self.restarts) if self.restarts else 0)

    def unsteady(self, now: datetime) -> float:
        """Seconds for which a crash loop is still to be told of, though it runs. One end may happen to everybody, and
        pods that were replaced, as by a drain, are none."""
        return self.left(STEADY, now) if self.restarts > 1 and self.last_words else 0.0

    @property
    def last_words(self) -> str | None:
        return annotations_of(self.workload).get(LAST_WORDS)

    def left(self, time: timedelta, now: datetime) -> float:
        """Seconds until so much time is over since its last restart; 0 where there was none."""
        last = annotations_of(self.workload).get(RESTARTED_AT)
        return max((parse_time(last) + time - now).total_seconds(), 0.0) if last else 0.0


Notes = dict[str, str | None]
"""Annotations; None takes one away."""


@dataclass(slots=True)
class GroupPlan:
    """What to do now: `plan` fills in what follows from the spec, `heal` the rest."""

    create: list[int] = field(default_factory=list)
    """Numbers of groups of the current revision."""
    delete: list[Group] = field(default_factory=list)
    restart: list[Group] = field(default_factory=list)
    """Note `counted_restart`, then delete all their pods."""
    bury: list[EnginePod] = field(default_factory=list)
    """Delete these without grace: their node is lost."""
    notes: list[tuple[Group, Notes]] = field(default_factory=list)
    exhausted: list[Group] = field(default_factory=list)
    """Broken, and restarted too often already."""
    requeue_after: float | None = None
    """Seconds until time alone may change it."""
    no_room: str | None = None
    """Why an old group has to go before a new one is ready."""

    def again_in(self, seconds: float) -> None:
        self.requeue_after = min(seconds, self.requeue_after or seconds)


def gather(workloads: Sequence[Object], pods: Sequence[EnginePod]) -> list[Group]:
    """The groups that are there and not about to go, by number."""
    groups = [
        Group(workload, [pod for pod in pods if pod.owner == uid_of(workload)])
        for workload in workloads
        if "deletionTimestamp" not in workload["metadata"]
    ]
    return sorted(groups, key=lambda group: (group.revision, group.number))


def ending(groups: Sequence[Group], pods: Sequence[EnginePod], now: datetime) -> list[EnginePod]:
    """As in a rollout of single pods; and those that the garbage collector is about to get to."""
    sets = {uid_of(group.workload) for group in groups}
    left_over = [pod for pod in pods if pod.owner and pod.owner not in sets and not pod.terminating]
    return rollout.ending(pods, now) + left_over


def heal(groups: Sequence[Group], pods: Sequence[EnginePod], now: datetime) -> GroupPlan:
    """What keeps groups well that are there, whatever the spec says by now. `pods`: as for `plan`."""
    result = GroupPlan()
    _plan_members(groups, now, result)
    _plan_burials(pods, now, result)
    return result


def plan(
    groups: Sequence[Group],
    pods: Sequence[EnginePod],
    *,
    wanted: int,
    revision: str,
    strategy: Literal["Auto", "Surge", "Replace"],
    load: dict[str, int],
    now: datetime,
    quiet_since: datetime | None = None,
    paused: bool = False,
) -> GroupPlan:
    """`pods`: all of the ModelDeployment, those as well whose StatefulSet is gone. `load`: requests in flight by pod.

    `wanted`: how many groups there should be. `quiet_since`: see rollout.Endings. `paused`: a rollout waits.
    """
    result = GroupPlan()
    if paused and any(group.revision != revision for group in groups):
        return result
    current = [group for group in groups if group.revision == revision]
    expendable = sorted(current, key=lambda group: (group.ready, _load(group, load), -group.number))
    result.delete += expendable[: max(len(current) - wanted, 0)]
    kept = [group for group in current if group not in result.delete]

    # Old groups that do not serve help nobody.
    old = [group for group in groups if group.revision != revision]
    result.delete += [group for group in old if not group.ready]
    serving = sorted((group for group in old if group.ready), key=lambda group: (_load(group, load), -group.number))

    stuck = None
    if strategy == "Auto" and serving:
        waiting = rollout.unplaced([pod for group in kept for pod in group.pods], revision)
        stuck, again = rollout.lack_of_room(waiting, ending(groups, pods, now), now, quiet_since)
        if again is not None:
            result.again_in(again)
        if stuck or any(annotations_of(group.workload).get(NO_ROOM) == revision for group in serving):
            strategy = "Replace"
            result.no_room = f"there was no room for one more ({stuck})" if stuck else "there was no room for one more"
    proven = {group.number for group in kept if not group.proven_in(now)}
    _plan_rollout(kept, proven, serving, wanted, strategy == "Replace", stuck is not None, result)
    if serving:
        for group in kept:
            if group.ready and group.number not in proven:
                result.again_in(group.proven_in(now))
    if stuck:
        unnoted = [group for group in serving if annotations_of(group.workload).get(NO_ROOM) != revision]
        result.notes += [(group, {NO_ROOM: revision}) for group in unnoted if group not in result.delete]
    return result


def _plan_rollout(
    kept: Sequence[Group],
    proven: Set[int],
    serving: Sequence[Group],
    wanted: int,
    replace: bool,
    stuck: bool,
    result: GroupPlan,
) -> None:
    """`kept`: of the current revision; `proven`: numbers of those that have been ready for a while. `serving`: of old
    ones, in the order in which they may go.

    `stuck`: some of the kept have no room.
    """
    ready = len(proven)
    released = max(len(serving) - max(wanted - ready, 0), 0)  # as many as the new ones make up for
    none_missing = ready + len(serving) >= wanted
    if serving and not released and none_missing and (stuck or (replace and ready == len(kept))):
        released = 1
    left = len(serving) - released
    result.delete += serving[:released]

    # While some are missing, what is free is for those in their place: a surge beside them might find no room.
    surge = int(not replace and ready + left >= wanted)
    room = wanted + surge - len(kept) - left
    taken = {group.number for group in kept}
    free = (number for number in itertools.count() if number not in taken)
    result.create = list(itertools.islice(free, max(min(wanted - len(kept), room), 0)))


def _plan_members(groups: Sequence[Group], now: datetime, result: GroupPlan) -> None:
    for group in groups:
        known = set(filter(None, annotations_of(group.workload).get(MEMBERS, "").split(",")))
        present = {pod.uid for pod in group.pods if not pod.terminating}
        if not present & known:
            # None is known yet, or all are new ones.
            if group.complete:
                anew = _begins_anew(group, now) if known else {}
                result.notes.append((group, anew | {MEMBERS: ",".join(sorted(present))}))
        elif present == known and not (group.begun and any(pod.restarts for pod in group.pods)):
            if group.ready and group.loading_since is not None:
                result.notes.append((group, {LOADING_SINCE: LOADED}))
            if group.restarts and group.ready:
                _forgive(group, now, result)
        elif group.restarts >= RESTART_BUDGET:
            result.exhausted.append(group)
        elif pause := group.left(group.pause, now):
            result.again_in(pause)
        else:
            result.restart.append(group)


def _forgive(group: Group, now: datetime, result: GroupPlan) -> None:
    """Forget the restarts of a group that is well, if the last one is long ago."""
    if left := group.left(_WELL_AFTER, now):
        result.again_in(left)
    else:
        result.notes.append((group, {RESTARTS: None, RESTARTED_AT: None, LAST_WORDS: None}))


def counted_restart(group: Group, now: datetime) -> Notes:
    """The annotations of a group that is restarted now.

    Its members stay noted: should the operator end before it has deleted all of them, those that are left are seen as
    what they are, and the group is restarted once more.
    """
    words = next((pod.ended for pod in group.pods if pod.ended), None)
    return _begins_anew(group, now) | {
        RESTARTS: str(group.restarts + 1),
        RESTARTED_AT: now.isoformat(timespec="seconds"),
        LAST_WORDS: words[:_LONGEST_WORDS] if words else None,
    }


def _begins_anew(group: Group, now: datetime) -> Notes:
    """Of one that had loaded; the time of any other goes on."""
    return {LOADING_SINCE: now.isoformat(timespec="seconds")} if group.loading_since is None else {}


def _plan_burials(pods: Sequence[EnginePod], now: datetime, result: GroupPlan) -> None:
    for pod in pods:
        if pod.deleted is None:
            continue
        left = (pod.deleted + _LOST_AFTER - now).total_seconds()
        if left > 0:
            result.again_in(left)
        else:
            result.bury.append(pod)


def _load(group: Group, load: dict[str, int]) -> int:
    """Unknown counts as busy."""
    return max((load.get(pod.name, 1 << 30) for pod in group.pods if pod.index == 0), default=0)
