"""A little cluster on a virtual clock: StatefulSets, their pods, a scheduler with so many slots, and the operator.

A second a step. The operator reconciles when something changed, when it asked to, and every five minutes, so a
plan that waits for time alone without saying so is late here as it would be in earnest.
"""

import itertools
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from headwater_operator.cluster.kinds import Key, Object, labels_of, name_of, uid_of
from headwater_operator.diagnose.pods import EnginePod
from headwater_operator.reconcile import group_plan, rollout
from tests.operator.objects import NOW, container, pod, stateful_set

Strategy = Literal["Auto", "Surge", "Replace"]

SIZE = 2
"""Pods in a group."""
LOAD = 60
"""Seconds from a node to readiness."""
RESYNC = 300
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


@dataclass(eq=False)
class Member:
    name: str
    uid: str
    owner: str
    """UID of its StatefulSet."""
    revision: str
    group: int
    index: int
    created: datetime
    began: datetime | None = None
    """When its container started last; None while no node has room."""
    going: datetime | None = None
    """Its deletionTimestamp."""
    restarts: int = 0
    lost: bool = False
    """Its node is: nothing ends it."""

    def ready(self, now: datetime) -> bool:
        loaded = self.began is not None and (now - self.began).total_seconds() >= LOAD
        return loaded and self.going is None and not self.lost

    def seen(self, now: datetime) -> EnginePod:
        return EnginePod.of(
            pod(
                self.name,
                uid=self.uid,
                owner=self.owner,
                revision=self.revision,
                group=self.group,
                index=self.index,
                created=self.created,
                deleted=self.going,
                ready=self.ready(now),
                ready_since=self.began and self.began + timedelta(seconds=LOAD),
                unschedulable=NO_GPU if self.began is None else None,
                containers=[container(running={}, restarts=self.restarts)] if self.began else [],
            )
        )


@dataclass
class World:
    slots: int = 100
    wanted: int = 2
    revision: str = "a"
    strategy: Strategy = "Auto"
    drain: int = 5
    """Seconds that a pod takes to end."""
    collect_after: int = 0
    """Seconds that the garbage collector takes to find pods whose StatefulSet is gone."""
    load: dict[str, int] = field(default_factory=dict)
    now: datetime = NOW
    sets: dict[str, Object] = field(default_factory=dict)
    pods: dict[str, Member] = field(default_factory=dict)
    restarts: list[tuple[datetime, str]] = field(default_factory=list)
    buried: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    no_room: str | None = None
    exhausted: list[str] = field(default_factory=list)
    _endings: rollout.Endings = field(default_factory=rollout.Endings)
    _orphans: dict[str, datetime] = field(default_factory=dict)
    _uids: "itertools.count[int]" = field(default_factory=itertools.count)
    _seen: object = None
    _look_at: datetime = NOW

    # What can be asked

    def ready(self, revision: str | None = None) -> int:
        """Groups that serve, of one revision or of any."""
        return sum(self.serves(name) for name, each in self.sets.items() if revision in (None, revision_of(each)))

    def serves(self, name: str) -> bool:
        uid = uid_of(self.sets[name])
        mine = [each for each in self.pods.values() if each.owner == uid]
        return len(mine) == SIZE and all(each.ready(self.now) for each in mine)

    def settled(self) -> bool:
        return (
            all(revision_of(each) == self.revision for each in self.sets.values())
            and self.ready() == len(self.sets) == self.wanted
        )

    def members(self, name: str) -> list[Member]:
        return [self.pods[f"{name}-{index}"] for index in range(SIZE)]

    # What can be done

    def settle(self, seconds: int = 1500) -> None:
        for _ in range(seconds):
            self.step()
            if self.settled():
                return
        raise AssertionError(f"not settled: {self}")

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.step()

    def add(self, revision: str, number: int, annotations: dict[str, str] | None = None) -> None:
        made = stateful_set(revision, number, size=SIZE, uid=self._uid(), annotations=annotations)
        self.sets[name_of(made)] = made

    def delete_pod(self, member: Member, *, at_once: bool = False) -> None:
        if at_once:
            self.pods.pop(member.name, None)
        elif member.going is None:
            member.going = self.now + timedelta(seconds=self.drain if member.began else 0)

    def crash(self, member: Member) -> None:
        member.restarts += 1
        member.began = self.now

    def step(self) -> None:
        self.now += timedelta(seconds=1)
        self._schedule()  # the scheduler needs a second to see what has become free, and the operator sees it before
        self._end_pods()
        self._make_pods()
        seen = self._state()
        if seen != self._seen or self.now >= self._look_at:
            self._seen = seen
            self.reconcile()

    # The cluster

    def _end_pods(self) -> None:
        alive = {uid_of(each) for each in self.sets.values()}
        for each in list(self.pods.values()):
            if each.owner not in alive:
                orphaned = self._orphans.setdefault(each.uid, self.now)
                if (self.now - orphaned).total_seconds() >= self.collect_after:
                    self.delete_pod(each)
            if each.going is not None and self.now >= each.going and not each.lost:
                del self.pods[each.name]

    def _make_pods(self) -> None:
        for name, each in self.sets.items():
            for index in range(SIZE):
                pod_name = f"{name}-{index}"
                if pod_name not in self.pods:
                    number = int(name.rpartition("-")[2])
                    self.pods[pod_name] = Member(
                        pod_name, self._uid(), uid_of(each), revision_of(each), number, index, self.now
                    )

    def _schedule(self) -> None:
        free = self.slots - sum(each.began is not None and not each.lost for each in self.pods.values())
        for each in sorted(self.pods.values(), key=lambda each: each.created):
            if free > 0 and each.began is None and each.going is None:
                each.began = self.now
                free -= 1

    def _state(self) -> object:
        pods = [
            (each.uid, each.ready(self.now), each.going is None, each.began is None, each.restarts)
            for each in self.pods.values()
        ]
        sets = [(uid_of(each), *sorted(each["metadata"]["annotations"].items())) for each in self.sets.values()]
        return pods, sets, self.wanted, self.revision, self.strategy

    def _uid(self) -> str:
        return f"uid-{next(self._uids)}"

    # The operator, which does what is planned in the order of realize.py

    def reconcile(self) -> None:
        pods = [each.seen(self.now) for each in self.pods.values()]
        found = group_plan.gather(list(self.sets.values()), pods)
        healed = self.heal(found, pods)
        plan = group_plan.plan(
            found,
            pods,
            wanted=self.wanted,
            revision=self.revision,
            strategy=self.strategy,
            load=self.load,
            now=self.now,
            quiet_since=self._endings.quiet_since(
                Key("default", "m"), group_plan.ending(found, pods, self.now), self.now
            ),
        )
        again = min(each for each in (healed.requeue_after, plan.requeue_after, RESYNC) if each is not None)
        self._look_at = self.now + timedelta(seconds=again)
        self.no_room = plan.no_room
        for group in plan.delete:
            self.deleted.append(name_of(group.workload))
            del self.sets[name_of(group.workload)]
        for number in plan.create:
            self.add(self.revision, number)
        for group, notes in plan.notes:
            assert name_of(group.workload) in self.sets, "what is deleted cannot be written to"
            self.note(group, notes)

    def heal(self, found: list[group_plan.Group], pods: list[EnginePod]) -> group_plan.GroupPlan:
        plan = group_plan.heal(found, pods, self.now)
        self.exhausted = [name_of(group.workload) for group in plan.exhausted if group.revision == self.revision]
        for group, notes in plan.notes:
            self.note(group, notes)
        for group in plan.restart:
            self.note(group, group_plan.counted_restart(group, self.now))
            self.restarts.append((self.now, name_of(group.workload)))
            for each in group.pods:
                if not each.terminating:
                    self.delete_pod(self.pods[each.name])
        for each in plan.bury:
            self.buried.append(each.name)
            self.delete_pod(self.pods[each.name], at_once=True)
        return plan

    def note(self, group: group_plan.Group, notes: group_plan.Notes) -> None:
        workload = self.sets[name_of(group.workload)]
        changed = workload["metadata"]["annotations"] | notes
        kept = {name: value for name, value in changed.items() if value is not None}
        self.sets[name_of(workload)] = workload | {"metadata": workload["metadata"] | {"annotations": kept}}


def revision_of(workload: Object) -> str:
    return labels_of(workload)["headwater.dev/revision"]
