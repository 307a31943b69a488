"""What keeps a Job that fetches weights or builds an engine from its work, and what its pods said in the end.

A Job whose time is over takes its pods with it. So what held them up lies on the Job until one of them begins.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from headwater.kubernetes import GROUP
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.kinds import JOB, POD, Object, annotations_of, name_of, namespace_of, uid_of
from headwater_operator.diagnose.pods import EnginePod, Problem, finished
from headwater_operator.diagnose.startup import PATIENCE, Startup, pods_without_containers, waiting
from headwater_operator.watch.store import Store

HELD_UP: Final = f"{GROUP}/held-up"
"""Annotation: a reason and a message."""
_UNBOUND: Final = "unbound immediate PersistentVolumeClaims"
"""Words of the scheduler where it is the volume that is waited for, of which there is more to say."""


class Jobs:
    def __init__(self, cluster: Cluster, store: Store, startup: Startup) -> None:
        self._cluster = cluster
        self._store = store
        self._startup = startup

    async def held_up(
        self, job: Object | None, claim: Object | None, now: datetime
    ) -> tuple[Problem | None, float | None]:
        """Why it does nothing, once that has lasted a minute; and in how many seconds to ask again.

        `claim`: the volume that it writes to. Raises ApiError.
        """
        if job is None or ended(job) or "deletionTimestamp" in job["metadata"]:
            return None, None
        pods = [EnginePod.of(each) for each in self._store.owned(uid_of(job), POD) if not finished(each)]
        found, again = await self._problem(job, claim, pods, now)
        await self._note(job, pods, found)
        return found, again

    async def _problem(
        self, job: Object, claim: Object | None, pods: Sequence[EnginePod], now: datetime
    ) -> tuple[Problem | None, float | None]:
        patience = min(PATIENCE, job["spec"].get("activeDeadlineSeconds", 2 * PATIENCE) / 2)
        those = pods_without_containers(pods)
        if claim is not None and (claim.get("status") or {}).get("phase", "Pending") == "Pending":
            those.append(waiting(claim))
        if not pods and not job["spec"].get("suspend"):
            those.append(waiting(job))
        said, again = await self._startup.problem(namespace_of(job), those, now, patience)
        for pod in pods:
            if (own := of_pod(pod)) is None:
                continue
            left = patience - (now - pod.created).total_seconds()
            if left > 0:
                again = min(left, again or left)
            else:
                said = said or own
        return said, again

    async def _note(self, job: Object, pods: Sequence[EnginePod], found: Problem | None) -> None:
        noted, told = annotations_of(job).get(HELD_UP), f"{found.reason}: {found.message}" if found else None
        if told is None and not any(pod.begun for pod in pods):
            return  # its pods may just have gone with its time
        if told != noted:
            patch = {"metadata": {"annotations": {HELD_UP: told}}}
            self._store.put(await self._cluster.patch(JOB, namespace_of(job), name_of(job), patch))


def of_pod(pod: EnginePod) -> Problem | None:
    """What its status says, at once."""
    if pod.problem is not None or pod.unschedulable is None or _UNBOUND in pod.unschedulable:
        return pod.problem
    return Problem("Unschedulable", f"no node takes pod {pod.name}: {pod.unschedulable}")


def ended(job: Object | None) -> str | None:
    """Complete or Failed, if it is over."""
    return next((str(each["type"]) for each in _conditions(job) if each["type"] in ("Complete", "Failed")), None)


def out_of_time(job: Object) -> bool:
    return any(each["type"] == "Failed" and each.get("reason") == "DeadlineExceeded" for each in _conditions(job))


def noted(job: Object) -> Problem | None:
    """What held it up, if it never got to its work."""
    reason, _, message = annotations_of(job).get(HELD_UP, "").partition(": ")
    return Problem(reason, message) if reason else None


def attempts(job: Object) -> int:
    """That have failed."""
    return (job.get("status") or {}).get("failed") or 0


def last_words(job: Object, pods: Sequence[Object]) -> str:
    """What the pod that ended last said of it, or else what the Job's controller says of the Job."""
    ends = _ends(pods)
    if not ends:
        return next((str(each.get("message") or "") for each in _conditions(job) if each["type"] == "Failed"), "")
    last = max(ends, key=lambda each: each[0])[1]
    if last.get("reason") == "OOMKilled":
        return "killed for its memory"
    return str(last.get("message") or "").strip() or f"exit code {last.get('exitCode')}"


def result(pods: Sequence[Object]) -> str:
    """What the one of these that came to a good end said then."""
    said = [str(last.get("message") or "").strip() for _, last in _ends(pods) if last.get("exitCode") == 0]
    return next(filter(None, said), "")


def _ends(pods: Sequence[Object]) -> list[tuple[str, Object]]:
    """When and how each container ended."""
    return [
        (str(last.get("finishedAt", "")), last)
        for pod in pods
        for status in (pod.get("status") or {}).get("containerStatuses") or []
        if (last := (status.get("state") or {}).get("terminated"))
    ]


def _conditions(job: Object | None) -> list[Object]:
    """Those that are true."""
    conditions = (job.get("status") or {}).get("conditions") or [] if job else []
    return [each for each in conditions if each["status"] == "True"]
