"""What has to be there before a pod can start: the weights on their volume, and for TensorRT-LLM the built engine.

Each is the work of a Job whose result stays. Until it is there, what already runs goes on unchanged.
"""

from dataclasses import replace

from headwater.kubernetes import LABEL_UNUSED
from headwater.resource import ModelDeployment, ResourceError
from headwater_operator import render
from headwater_operator.cluster.kinds import CLAIM, JOB, Object, kind_of, labels_of, name_of
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose.pods import Problem
from headwater_operator.reconcile import weights
from headwater_operator.reconcile.applier import Applier
from headwater_operator.reconcile.fetch_progress import FetchProgress
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
    ) -> None:
        self._progress = progress
        self._cache = cache
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
        observed = replace(observed, figures=await self._progress.of(observed.pods))
        users = self._store.specs.sharing(namespace, volume(work.deployment).claim)
        plan = weights.plan(work.deployment, users, self._settings, namespace, observed, work.now)
        if (claim := observed.claim) is not None and LABEL_UNUSED in labels_of(claim):
            await self._sweep.run(namespace)
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
                work.situation.problem = Problem("WeightsFailed", plan.message)
                raise PrerequisiteMissingError
            case WeightsPhase.PENDING | WeightsPhase.FILLING:
                work.situation.preparing = "Downloading", plan.message
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
        match _ended(self._store.get(JOB, work.key.namespace, name)):
            case "Complete":
                return name
            case "Failed":
                message = f"the engine cannot be built; kubectl logs job/{name} shows why. Deleting the Job tries again"
                work.situation.problem = Problem("BuildFailed", message)
            case _:
                message = f"Job {name} builds the engine, which may take half an hour"
                work.situation.preparing = "Building", message
        raise PrerequisiteMissingError


def _shared(pin: Pin) -> WeightsPlan:
    """Weights that the platform has put into every namespace itself."""
    claim, _, path = pin.shared.partition("/")
    there = WeightsVolume(claim, f"{MODELS}/{path}".rstrip("/"), read_only=True)
    return WeightsPlan(WeightsPhase.FILLED, "shared by the platform, not fetched", there, claim)


def _ended(job: Object | None) -> str | None:
    conditions = (job.get("status") or {}).get("conditions") or [] if job else []
    return next(
        (
            str(each["type"])
            for each in conditions
            if each["status"] == "True" and each["type"] in ("Complete", "Failed")
        ),
        None,
    )
