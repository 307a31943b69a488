"""Weights on the cluster: fetched once into a volume, however many replicas and ModelDeployments wait for them.

`plan` looks at the volume, the Job that fills it and that Job's pods, and says how far it is and what to apply. The
lasting truth is an annotation on the volume; Job and pods may be gone at any time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from headwater.resource import KIND, ModelDeployment
from headwater_operator.cluster.kinds import CLAIM, JOB, POD, Object, annotations_of, name_of, uid_of
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose.pods import EnginePod, Problem, finished, parse_time
from headwater_operator.diagnose.startup import PATIENCE
from headwater_operator.reconcile import jobs
from headwater_operator.reconcile.fetch_progress import ASKED_AGAIN, Figures
from headwater_operator.render.context import Manifest, WeightsVolume
from headwater_operator.render.weights import (
    FETCHED,
    FILLED,
    MOST_OWNERS,
    SOURCE,
    VERIFIED,
    copy_of,
    is_copied,
    made_alike,
    reaches_one_node,
    render_claim,
    render_copy,
    render_job,
    volume,
)
from headwater_operator.watch.specs import Sharing
from headwater_operator.watch.store import Store

_SOON: Final = 0.5


class WeightsPhase(StrEnum):
    NOT_NEEDED = "NotNeeded"
    PENDING = "Pending"
    """There is no volume to write to yet."""
    FILLING = "Filling"
    FILLED = "Filled"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Observed:
    """What there is of it now."""

    claim: Object | None = None
    job: Object | None = None
    pods: Sequence[Object] = ()
    """Of the Job."""
    figures: Figures | None = None
    """What its pod says of how far it is."""
    held_up: Problem | None = None
    """Why it has been doing nothing for a minute."""


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    phase: WeightsPhase
    message: str = ""
    volume: WeightsVolume | None = None
    """To mount; only once it is filled."""
    claim: str | None = None
    """Name of the volume, filled or not."""
    manifests: Sequence[Manifest] = ()
    """To apply, in this order. They belong to no ModelDeployment alone."""
    delete: Sequence[Object] = ()
    again: float | None = None
    """Seconds after which time alone may have changed something."""
    figures: Figures | None = None
    problem: Problem | None = None
    """What does not pass by itself; also before it has failed for it."""

    def shown(self) -> dict[str, Any]:
        """For `status.weights`; empty where none are needed."""
        if self.phase is WeightsPhase.NOT_NEEDED:
            return {}
        shown: dict[str, Any] = {"phase": str(self.phase), "claim": self.claim, "message": self.message}
        if self.figures is not None:
            shown |= {"progress": self.figures.shown()}
        return {name: value for name, value in shown.items() if value}


def needs_volume(deployment: ModelDeployment) -> bool:
    return deployment.spec.weights.cached and deployment.spec.model.source.startswith(FETCHED)


def one_node(deployment: ModelDeployment, settings: OperatorSettings, claim: Object | None) -> bool:
    """Whether the volume with the weights, as it is or else as it will be, reaches the pods of one node only."""
    if claim is not None and is_copied(claim):
        return False
    modes = claim["spec"].get("accessModes") if claim is not None else None
    wanted = [deployment.spec.weights.access_mode or settings.weights_access_mode]
    return needs_volume(deployment) and reaches_one_node(modes or wanted)


def observe(store: Store, namespace: str, deployment: ModelDeployment) -> Observed:
    """What the operator knows of it."""
    name = volume(deployment).claim
    job = store.get(JOB, namespace, name)
    pods = store.owned(uid_of(job), POD) if job is not None else []
    return Observed(store.get(CLAIM, namespace, name), job, pods)


def plan(
    deployment: ModelDeployment,
    sharing: Sharing,
    settings: OperatorSettings,
    namespace: str,
    observed: Observed,
    now: datetime,
) -> WeightsPlan:
    """`sharing`: the ModelDeployments of the namespace with the same weights, this one among them.

    What is rendered is theirs together: the same for each of them, and so made once for all.
    """
    if not needs_volume(deployment):
        return WeightsPlan(WeightsPhase.NOT_NEEDED)
    claim, job = observed.claim, observed.job
    there = volume(deployment)
    if claim is not None and "deletionTimestamp" in claim["metadata"]:
        # Whoever still mounts it holds it back, the Job's pod too, also when it has ended; a new one of its name can be
        # made only afterwards.
        message = f"the volume {there.claim} is being deleted"
        return WeightsPlan(WeightsPhase.PENDING, message, claim=there.claim, delete=going(job))
    filled = claim is not None and is_filled(claim, job)
    verified = _verified(observed) if filled else ""
    speaker = sharing.spokesman or deployment

    def rendered() -> Manifest:
        owners = _owners(sharing, claim, filled=filled)
        return render_claim(speaker, owners, settings, namespace, claim, filled=filled, verified=verified)

    manifest = sharing.once("claim", (speaker, claim, filled, verified), rendered)
    if claim is not None and _phase(claim) == "Lost":
        message = f"the volume {there.claim} has lost its storage; delete this PersistentVolumeClaim to fetch again"
        return WeightsPlan(WeightsPhase.FAILED, message, claim=there.claim)
    if filled and claim is not None:
        copied = is_copied(claim)
        manifests = [manifest]
        if copied:
            manifests += [sharing.once("copy", (speaker, claim), lambda: render_copy(speaker, settings, claim))]
        mounted = copy_of(there) if copied else there
        done, again = _done_with(claim, job, verified)
        return WeightsPlan(WeightsPhase.FILLED, verified, mounted, there.claim, manifests, done, again)
    if claim is None:
        # Making it is our own write, which is no news, and a volume that waits for its first pod does nothing more.
        message = f"the volume {there.claim} is made"
        return WeightsPlan(WeightsPhase.PENDING, message, None, there.claim, [manifest], again=_SOON)
    wanted = sharing.once("job", (speaker, claim), lambda: render_job(speaker, settings, claim))
    return filling(wanted, [manifest], observed, now)


def _done_with(claim: Object, job: Object | None, verified: str) -> tuple[Sequence[Object], float | None]:
    """The Job, once the volume itself tells all that it and its pod have told; else when to ask again.

    Left alone, its pod would hold back a volume that is to go with its last user, for as long as the Job stays.
    """
    if job is None or not verified:
        return (), None
    told = annotations_of(claim)
    written = told.get(FILLED) == "true" and told.get(VERIFIED) == verified
    return (going(job), None) if written else ((), _SOON)


def going(job: Object | None) -> Sequence[Object]:
    """The Job to delete, unless there is none or it is about to go."""
    return () if job is None or "deletionTimestamp" in job["metadata"] else (job,)


def _owners(sharing: Sharing, claim: Object | None, *, filled: bool) -> dict[str, str]:
    """Whom the volume goes with: nobody, if one of its users wants it kept and there is something to keep.

    One that names another source by now still counts, as long as it is there: going back must not fetch again.
    """
    if (filled and sharing.keeps) or len(sharing.users) > MOST_OWNERS:
        return {}
    references = claim["metadata"].get("ownerReferences") or [] if claim else []
    before = {each["uid"]: each["name"] for each in references if each["kind"] == KIND}
    present = {uid: user.name for uid, user in sharing.users.items()}
    both = before | present
    return both if len(both) <= MOST_OWNERS else present


def filling(wanted: Manifest, before: Sequence[Manifest], observed: Observed, now: datetime) -> WeightsPlan:
    """The volume is there, and not filled. `wanted`: the Job; `before`: what to apply whatever becomes of that."""
    job, name = observed.job, name_of(wanted)
    assert observed.claim is not None, "there is a volume"
    if job is None or "deletionTimestamp" in job["metadata"]:
        manifests = before if job else [*before, wanted]
        return WeightsPlan(WeightsPhase.FILLING, "the Job that fetches the weights is made", None, name, manifests)
    failed, tried = jobs.ended(job) == "Failed", jobs.attempts(job)
    if (failed or tried or observed.held_up) and not made_alike(job, wanted):
        # What is in its way may be mended: a Secret, a size, an image, a selector.
        message = "the Job that fetches the weights is made anew"
        return WeightsPlan(WeightsPhase.FILLING, message, None, name, before, [job])
    if failed:
        why = _failure(job, observed, now)
        message = f"{why.message.rstrip('.')}. It is tried again in ten minutes, or at once if you delete Job {name}"
        return WeightsPlan(WeightsPhase.FAILED, message, None, name, before, problem=Problem(why.reason, message))
    held_up = observed.held_up
    waiting = held_up.message if held_up else _unbound(observed.claim, now)
    if waiting is not None and _phase(observed.claim) == "Pending":
        return WeightsPlan(WeightsPhase.PENDING, waiting, None, name, before, again=PATIENCE, problem=held_up)
    again = PATIENCE if _phase(observed.claim) == "Pending" else ASKED_AGAIN if observed.pods else None
    told = _progress(wanted, tried, observed)
    return WeightsPlan(
        WeightsPhase.FILLING, told, None, name, before, again=again, figures=observed.figures, problem=held_up
    )


def is_filled(claim: Object, job: Object | None) -> bool:
    return annotations_of(claim).get(FILLED) == "true" or is_complete(job)


def is_complete(job: Object | None) -> bool:
    return jobs.ended(job) == "Complete"


def _phase(claim: Object) -> str:
    return str((claim.get("status") or {}).get("phase", "Pending"))


# What people are told


def _unbound(claim: Object, now: datetime) -> str | None:
    """Why there is still no storage behind the volume."""
    waited = (now - parse_time(claim["metadata"]["creationTimestamp"])).total_seconds()
    if _phase(claim) != "Pending" or waited < PATIENCE:
        return None
    name, storage_class = name_of(claim), claim["spec"].get("storageClassName")
    begin = f"the volume {name} has been Pending for {waited / 60:.0f} min"
    if not storage_class:
        return f"{begin}: it names no StorageClass and the cluster has no default one. {_ANEW}"
    return (
        f"{begin}: StorageClass {storage_class} gives it no storage. Does it exist, can it give "
        f"{', '.join(claim['spec'].get('accessModes') or [])} and {claim['spec']['resources']['requests']['storage']}? "
        f"kubectl describe pvc {name} tells more. The volume has the class that was asked for by the first "
        f"ModelDeployment with these weights. {_ANEW}"
    )


_ANEW: Final = (
    "Set spec.weights.storageClassName, or the operator's --weights-storage-class, then delete the "
    "PersistentVolumeClaim: it is made anew"
)


def _progress(wanted: Manifest, tried: int, observed: Observed) -> str:
    source, pods = wanted["metadata"]["annotations"][SOURCE], observed.pods
    text = f"fetching {source}" + (f": {observed.figures}" if observed.figures is not None else "")
    if tried and observed.job is not None:
        words = jobs.last_words(observed.job, pods)
        text += f", attempt {tried + 1}; the last one ended with: {words or 'nothing said'}"
    alive = sorted((EnginePod.of(pod) for pod in pods if not finished(pod)), key=lambda pod: pod.created, reverse=True)
    why = observed.held_up or next(filter(None, map(jobs.of_pod, alive)), None)
    return f"{text}; {why.message}" if why else text


def _failure(job: Object, observed: Observed, now: datetime) -> Problem:
    if not jobs.out_of_time(job):
        words = jobs.last_words(job, observed.pods) or "the Job failed"
        return Problem("WeightsFailed", f"the weights cannot be fetched: {words.rstrip('.')}")
    late = f"the weights were not there after {job['spec'].get('activeDeadlineSeconds')} s"
    if (held_up := jobs.noted(job)) is not None:
        return Problem(held_up.reason, f"{late}: {held_up.message}")
    if observed.claim is not None and (unbound := _unbound(observed.claim, now)) is not None:
        return Problem("VolumePending", f"{late}: {unbound}")
    return Problem("WeightsFailed", f"{late}; give them longer by spec.loadTimeout. What has come is kept")


def _verified(observed: Observed) -> str:
    """What the fetcher said at its good end: from the volume, or from the pod while that is there."""
    kept = annotations_of(observed.claim).get(VERIFIED, "") if observed.claim else ""
    return kept or jobs.result(observed.pods)
