"""What has to be there before a pod can start: the weights on their volume, and for TensorRT-LLM the built engine.

Each is the work of a Job whose result stays. Until it is there, what already runs goes on unchanged.
"""

from collections.abc import Sequence
from dataclasses import replace

from headwater.kubernetes import LABEL_UNUSED
from headwater.resource import ModelDeployment, ResourceError
from headwater_operator import render
from headwater_operator.cluster.kinds import CLAIM, JOB, POD, Object, kind_of, labels_of, name_of, uid_of
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose.pods import Problem
from headwater_operator.reconcile import weights
from headwater_operator.reconcile.applier import Applier
from headwater_operator.reconcile.fetch_progress import FetchProgress
from headwater_operator.reconcile.jobs import Jobs, attempts, ended, last_words, noted, out_of_time
from headwater_operator.reconcile.reconciliation import Reconciliation
from headwater_operator.reconcile.sweep import Sweep
from headwater_operator.reconcile.weights import WeightsPhase, WeightsPlan
from headwater_operator.reconcile.weights_cache import WeightsCache
from headwater_operator.render import Context, Pin, WeightsVolume
from headwater_operator.render.storage import MODELS
from headwater_operator.render.weights import key, volume
from headwater_operator.render.weights_cache import Cache
from headwater_operator.watch.store import Store


class PrerequisiteMissingError(Exception):
    """Something is still missing; the situation says what."""


class Prerequisites:
    def __init__(
        self,
        settings: OperatorSettings,
        store: Store,
        applier: Applier,
        sweep: Sweep,
        progress: FetchProgress,
        cache: WeightsCache,
        jobs: Jobs,
    ) -> None:
        self._progress = progress
        self._cache = cache
        self._jobs = jobs
        self._settings = settings
        self._store = store
        self._applier = applier
        self._sweep = sweep

    async def weights(self, work: Reconciliation, pin: Pin) -> WeightsVolume | None:
        """The volume, if it takes one. Raises PrerequisiteMissingError, ResourceError."""
        if not weights.needs_volume(work.deployment):
            return None
        if pin.shared:
            cache = self._cache.holds(pin.shared, work.deployment)
            return await self._carry_out(work, await self._cache.plan(cache, work) if cache else _shared(pin))
        namespace = work.key.namespace
        self._check_reach(namespace, work.deployment)
        observed = weights.observe(self._store, namespace, work.deployment)
        held_up, again = await self._jobs.held_up(observed.job, observed.claim, work.now)
        work.requeue_after(again)
        observed = replace(observed, figures=self._progress.of(work.key, observed.pods), held_up=held_up)
        sharing = self._store.specs.sharing(namespace, volume(work.deployment).claim)
        plan = weights.plan(work.deployment, sharing, self._settings, namespace, observed, work.now)
        if (claim := observed.claim) is not None and LABEL_UNUSED in labels_of(claim):
            await self._sweep.look_at(namespace, name_of(claim))
        return await self._carry_out(work, plan)

    def shared(self, deployment: ModelDeployment) -> str:
        """Claim and path, for the pin; empty where the platform does not share these weights."""
        if not weights.needs_volume(deployment):
            return ""
        cache = Cache.of(self._settings)
        return self._settings.weights_shared.get(key(deployment)) or (cache and cache.place(deployment)) or ""

    async def _carry_out(self, work: Reconciliation, plan: WeightsPlan) -> WeightsVolume | None:
        """Raises PrerequisiteMissingError."""
        for manifest in plan.delete:
            await self._applier.delete(manifest)
        for manifest in plan.manifests:
            await self._applier.apply(manifest, None)
        work.requeue_after(plan.again)
        if shown := plan.shown():
            work.situation.extra["weights"] = shown
        match plan.phase:
            case WeightsPhase.FAILED:
                work.situation.problem = plan.problem or Problem("WeightsFailed", plan.message)
                raise PrerequisiteMissingError
            case WeightsPhase.PENDING | WeightsPhase.FILLING:
                _wait(work, "Downloading", plan.message, plan.problem)
                raise PrerequisiteMissingError
        return plan.volume

    def reaches_one_node(self, namespace: str, deployment: ModelDeployment) -> bool:
        """Whether the pods mount a volume that is on one node alone."""
        claim = self._store.get(CLAIM, namespace, volume(deployment).claim)
        return weights.one_node(deployment, self._settings, claim)

    def _check_reach(self, namespace: str, deployment: ModelDeployment) -> None:
        """The resource's own rules see neither the operator's default nor a volume that others have made."""
        nodes = deployment.spec.parallelism.nodes
        if nodes > 1 and self.reaches_one_node(namespace, deployment):
            claim = volume(deployment).claim
            raise ResourceError(
                f"spec.weights.accessMode: a replica has {nodes} nodes, and the volume {claim} is ReadWriteOnce, by "
                "the operator's default or as it was made, which reaches one; give ReadWriteMany, and delete the claim "
                "if it is there already; or cached: false"
            )

    async def build(self, work: Reconciliation, context: Context) -> str | None:
        """The claim with the built engine, if the backend wants one. Raises PrerequisiteMissingError, ResourceError."""
        manifests = render.render_build(work.deployment, context)
        if not manifests:
            return None
        if (work.deployment.spec.weights.access_mode or self._settings.weights_access_mode) == "ReadOnlyMany":
            raise ResourceError(
                "spec.weights.accessMode: ReadOnlyMany is for weights, and here an engine is built, which nobody "
                "copies; give ReadWriteOnce or ReadWriteMany"
            )
        for manifest in manifests:
            # Neither a Job nor a claim can be changed; what shapes the engine is in their name.
            if self._store.get(kind_of(manifest), work.key.namespace, name_of(manifest)) is None:
                await self._applier.apply(manifest, work.uid)
        name = render.build_name(work.deployment, context.pin)
        job = self._store.get(JOB, work.key.namespace, name)
        if ended(job) == "Complete":
            return name
        await self._tell_of_build(work, name, job)
        raise PrerequisiteMissingError

    async def _tell_of_build(self, work: Reconciliation, name: str, job: Object | None) -> None:
        pods = self._store.owned(uid_of(job), POD) if job else []
        if job is not None and ended(job) == "Failed":
            work.situation.problem = _build_failure(job, pods)
            return
        held_up, again = await self._jobs.held_up(job, self._store.get(CLAIM, work.key.namespace, name), work.now)
        work.requeue_after(again)
        message = f"Job {name} builds the engine, which may take half an hour"
        if job is not None and (tried := attempts(job)):
            message += f", attempt {tried + 1}; the last one ended with: {last_words(job, pods) or 'nothing said'}"
        if held_up is not None:
            advice = f"what is changed in spec.template counts once Job {name} is deleted"
            held_up = Problem(held_up.reason, f"{held_up.message.rstrip('.')}; {advice}")
            message += f"; {held_up.message}"
        _wait(work, "Building", message, held_up)


def _build_failure(job: Object, pods: Sequence[Object]) -> Problem:
    name = name_of(job)
    if out_of_time(job):
        late = f"the engine was not built after {job['spec'].get('activeDeadlineSeconds')} s"
        if (held_up := noted(job)) is not None:
            return Problem(held_up.reason, f"{late}: {held_up.message.rstrip('.')}. Deleting Job {name} tries again")
        return Problem("BuildFailed", f"{late}; give it longer by spec.loadTimeout, then delete Job {name}")
    words = last_words(job, pods).rstrip(".") or "nothing said"
    message = f"the engine cannot be built: {words}; kubectl logs job/{name} shows more. Deleting the Job tries again"
    return Problem("BuildFailed", message)


def _wait(work: Reconciliation, reason: str, message: str, held_up: Problem | None) -> None:
    it = work.situation
    it.preparing = reason, message
    if held_up is not None and held_up.reason == "Unschedulable":
        it.flaw = it.flaw or held_up  # a node may be on its way, and requests are held for it
    else:
        it.problem = it.problem or held_up


def _shared(pin: Pin) -> WeightsPlan:
    """Weights that the platform has put into every namespace itself."""
    claim, _, path = pin.shared.partition("/")
    there = WeightsVolume(claim, f"{MODELS}/{path}".rstrip("/"), read_only=True)
    return WeightsPlan(WeightsPhase.FILLED, "shared by the platform, not fetched", there, claim)
