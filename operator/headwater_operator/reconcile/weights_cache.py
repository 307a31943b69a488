"""Weights that the platform shares: fetched once into its cache, whoever asks for them, and read from there by all.

The lasting truth is an annotation on the cache's own claim for each of the weights in it.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from headwater.resource import ModelDeployment
from headwater_operator.cluster.api import Cluster
from headwater_operator.cluster.kinds import CLAIM, JOB, POD, VOLUME, Object, annotations_of, name_of, uid_of
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose.pods import Problem, parse_time
from headwater_operator.diagnose.startup import PATIENCE, Startup, waiting
from headwater_operator.reconcile.applier import Applier
from headwater_operator.reconcile.fetch_progress import FetchProgress
from headwater_operator.reconcile.jobs import Jobs, result
from headwater_operator.reconcile.reconciliation import Reconciliation
from headwater_operator.reconcile.weights import Observed, WeightsPhase, WeightsPlan, filling, is_complete
from headwater_operator.render import weights_cache as render
from headwater_operator.render.context import WeightsVolume
from headwater_operator.render.weights import volume
from headwater_operator.render.weights_cache import Cache
from headwater_operator.watch.store import Store

log = structlog.get_logger(__name__)

_SOON: Final = 1.0
"""Seconds: a claim whose volume is named is bound in one or two."""
_ADVICE: Final = (
    "the share is the platform's: --weights-cache, operator.settings.weights_cache of the chart, says what its volumes "
    "are, and kubectl describe pv how they are"
)


class WeightsCache:
    def __init__(
        self,
        settings: OperatorSettings,
        cluster: Cluster,
        store: Store,
        applier: Applier,
        progress: FetchProgress,
        jobs: Jobs,
        startup: Startup,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._store = store
        self._applier = applier
        self._progress = progress
        self._jobs = jobs
        self._startup = startup
        self._cache = Cache.of(settings)

    def holds(self, shared: str, deployment: ModelDeployment) -> Cache | None:
        """The cache, if it is to have these weights; None: the platform has put them there, or elsewhere."""
        return self._cache if shared == render.place_of(deployment) else None

    async def plan(self, cache: Cache, work: Reconciliation) -> WeightsPlan:
        """One step of it is made already, up to what the plan says. Raises NotOursError, ApiError."""
        deployment = work.deployment
        own = await self._claim(cache, cache.namespace, {})
        if own is None or not _is_usable(own):
            return await self._until_usable(own, cache.namespace, work)
        verified = render.filled(own, deployment)
        if verified is None:
            found = await self._fetch(cache, own, work)
            if isinstance(found, WeightsPlan):
                return found
            verified = found
        its = await self._claim(cache, work.key.namespace, {work.uid: work.key.name})
        if its is None or not _is_usable(its):
            return await self._until_usable(its, work.key.namespace, work)
        there = WeightsVolume(render.CLAIM, volume(deployment).path, read_only=True)
        message = f"shared by the platform; {verified}" if verified else "shared by the platform"
        return WeightsPlan(WeightsPhase.FILLED, message, there, render.CLAIM)

    async def _fetch(self, cache: Cache, own: Object, work: Reconciliation) -> WeightsPlan | str:
        """How far it is; once they are there, what was verified."""
        deployment = work.deployment
        job = self._store.get(JOB, cache.namespace, volume(deployment).claim)
        pods = self._store.owned(uid_of(job), POD) if job is not None else []
        if is_complete(job):
            verified = result(pods)
            patch = {"metadata": {"annotations": {render.filled_annotation(deployment): verified}}}
            self._store.put(await self._cluster.patch(CLAIM, cache.namespace, render.CLAIM, patch))
            return verified
        held_up, again = await self._jobs.held_up(job, own, work.now)
        work.requeue_after(again)
        observed = Observed(own, job, pods, self._progress.of(work.key, pods), held_up)
        plan = filling(cache.job(deployment, self._settings, own), [], observed, work.now)
        return replace(plan, claim=render.CLAIM)

    async def _claim(self, cache: Cache, namespace: str, users: Mapping[str, str]) -> Object | None:
        """Of a namespace, one step closer to being bound; None before there is one."""
        known = self._store.get(CLAIM, namespace, render.CLAIM)
        # The volume first: a claim that finds it is bound at once, one that does not is looked at a while later.
        if known is None or _phase(known) != "Bound":
            there = await self._cluster.get(VOLUME, "", render.volume_name(namespace))
            if there is None:
                await self._cluster.apply(cache.volume(namespace))
            elif _is_of_another(there, known):
                await self._cluster.delete(there)
                return known
        before = {each["uid"]: each["name"] for each in known["metadata"].get("ownerReferences") or []} if known else {}
        kept = known is not None and annotations_of(known).get(render.KEPT) == "true"
        return await self._applier.apply(cache.claim(namespace, before | dict(users), kept=kept), None)

    async def _until_usable(self, claim: Object | None, namespace: str, work: Reconciliation) -> WeightsPlan:
        """What is said of one that is not bound. Its volume is named, so what keeps it from that for a minute is more
        than a lack of time."""
        name, begin = render.CLAIM, f"the cache's volume in {namespace}"
        if claim is not None and _phase(claim) == "Lost":
            message = f"{begin} has lost its storage; delete PersistentVolumeClaim {name} there, and it is made anew"
            return WeightsPlan(WeightsPhase.FAILED, message, claim=name, again=PATIENCE)
        made = None if claim is None or "deletionTimestamp" in claim["metadata"] else claim
        if made is None or _age(made, work.now) < PATIENCE:
            return WeightsPlan(WeightsPhase.PENDING, f"{begin} is made", claim=name, again=_SOON)
        its = replace(waiting(made), advice=_ADVICE)
        said, again = await self._startup.problem(namespace, [its], work.now)
        problem = said or Problem("VolumePending", f"{its.what} in {namespace} is not bound to its volume; {_ADVICE}")
        return WeightsPlan(WeightsPhase.PENDING, problem.message, claim=name, again=again, problem=problem)

    async def sweep(self) -> None:
        """Volumes of claims that are gone say nothing of what is on the share, which stays. Raises ApiError."""
        if self._cache is None:
            return
        volumes, _ = await self._cluster.list(VOLUME, None, render.SELECTOR)
        for each in volumes:
            if (each.get("status") or {}).get("phase") == "Released":
                log.info("deleting", object=f"{VOLUME.name} {name_of(each)}", reason="its claim is gone")
                await self._cluster.delete(each)


def _is_usable(claim: Object) -> bool:
    """Whoever still mounts one that is to go holds it back."""
    return _phase(claim) == "Bound" and "deletionTimestamp" not in claim["metadata"]


def _phase(claim: Object) -> str:
    return str((claim.get("status") or {}).get("phase", "Pending"))


def _age(claim: Object, now: datetime) -> float:
    """Seconds; of one that is held back from being made, as somebody else undoes it, none."""
    made = claim["metadata"].get("creationTimestamp")
    return (now - parse_time(made)).total_seconds() if made else 0.0


def _is_of_another(there: Object, claim: Object | None) -> bool:
    """Whether it was bound to an earlier claim of this name, which nothing but a new volume mends."""
    bound = (there["spec"].get("claimRef") or {}).get("uid")
    return bound is not None and (claim is None or bound != uid_of(claim))
