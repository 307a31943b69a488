"""The operator's process: take the Lease, see what there is, and from then on turn events into keys.

kopf watches and nothing else: its handlers put what they are told into the store and a key into the queue. Everything
that is decided is decided by a worker that reconciles one ModelDeployment as it is, whatever event led there.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import uuid

import httpx
import structlog

from headwater.lag import LoopLag
from headwater.logs import configure_logging
from headwater_operator.autoscaling.follow import Scaling
from headwater_operator.cluster.admin_keys import AdminKeys
from headwater_operator.cluster.api import ApiError, Cluster
from headwater_operator.cluster.events import EventRecorder
from headwater_operator.cluster.lease import LeaseHolder, LeaseLostError
from headwater_operator.cluster.lease_thread import LEASE_LOST, LeaseThread
from headwater_operator.config import OperatorSettings
from headwater_operator.diagnose.startup import Startup
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.probes import serve_probes
from headwater_operator.racing import first
from headwater_operator.reconcile.adapters import Adapters
from headwater_operator.reconcile.applier import Applier
from headwater_operator.reconcile.children import Children
from headwater_operator.reconcile.errands import Errands
from headwater_operator.reconcile.fetch_progress import FetchProgress
from headwater_operator.reconcile.healing import Healing
from headwater_operator.reconcile.jobs import Jobs
from headwater_operator.reconcile.loop import ReconcileLoop
from headwater_operator.reconcile.prerequisites import Prerequisites
from headwater_operator.reconcile.queue import WorkQueue
from headwater_operator.reconcile.reconciler import Reconciler
from headwater_operator.reconcile.sweep import Sweep
from headwater_operator.reconcile.weights_cache import WeightsCache
from headwater_operator.watch.store import Store
from headwater_operator.watch.watches import watch

log = structlog.get_logger(__name__)


def run(settings: OperatorSettings) -> int:
    """Operate until a signal. Returns the exit status."""
    configure_logging(settings.log_level)
    spare_the_collector()
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(operate(settings))
    except LeaseLostError as error:
        log.error("ending at once", reason=str(error))
        return LEASE_LOST
    except (ApiError, OSError) as error:
        print(f"headwater operate: {error}", file=sys.stderr)
        return 1
    return 0


def spare_the_collector() -> None:
    """Garbage in cycles dies young here. The rest of what there is grows with the cluster, and is no garbage."""
    gc.set_threshold(2_000, 5, 1000)


async def operate(settings: OperatorSettings) -> None:
    """Wait for the Lease, then act until a signal or until it is lost. Raises LeaseLostError, ApiError."""
    metrics = OperatorMetrics()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    identity = f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    async with Cluster(metrics) as cluster, httpx.AsyncClient() as engines:
        loop, lag = _build(settings, cluster, metrics, identity, engines), LoopLag()
        async with (
            serve_probes(settings.host, settings.port, metrics, loop, lag),
            _lease(settings, metrics, identity) as lease,
        ):
            log.info("waiting for the Lease", name=f"{settings.lease_namespace}/{settings.lease_name}")
            if not await first(lease.acquired(), stop.wait()):
                return
            metrics.leader.set(1)
            log.info("acting", identity=identity, namespaces=settings.namespaces or "all")
            try:
                await first(lease.lost(), _act(settings, loop), lag.run(), stop.wait())
            finally:
                metrics.leader.set(0)


def _lease(settings: OperatorSettings, metrics: OperatorMetrics, identity: str) -> LeaseThread:
    seconds = settings.lease_seconds
    # It is given up when a third of it is left; half of that is for work to end, and half for clocks that differ.
    return LeaseThread(
        lambda: Cluster(metrics),
        lambda cluster: LeaseHolder(cluster, settings.lease_namespace, settings.lease_name, identity, seconds),
        grace=seconds / 6,
    )


def _build(
    settings: OperatorSettings, cluster: Cluster, metrics: OperatorMetrics, identity: str, engines: httpx.AsyncClient
) -> ReconcileLoop:
    store = Store()
    scaling = Scaling(settings, cluster, metrics)
    recorder = EventRecorder(cluster, identity)
    applier = Applier(cluster, store, metrics)
    sweep = Sweep(cluster, store, applier)
    queue = WorkQueue()
    errands = Errands(queue.add)
    progress = FetchProgress(engines, errands)
    startup = Startup(cluster)
    jobs = Jobs(cluster, store, startup)
    cache = WeightsCache(settings, cluster, store, applier, progress, jobs, startup)
    prerequisites = Prerequisites(settings, store, applier, sweep, progress, cache, jobs)
    keys = AdminKeys(settings, cluster)
    adapters = Adapters(engines, keys, errands)
    healing = Healing(cluster, store, recorder)
    children = Children(
        settings, cluster, store, applier, recorder, scaling, prerequisites, adapters, keys, healing, startup
    )
    reconciler = Reconciler(
        settings, cluster, store, healing, children, sweep, cache, recorder, scaling, metrics, applier.contests
    )
    return ReconcileLoop(settings, cluster, store, reconciler, scaling, metrics, queue, errands)


async def _act(settings: OperatorSettings, loop: ReconcileLoop) -> None:
    await loop.load()
    async with asyncio.TaskGroup() as group:
        group.create_task(loop.run())
        group.create_task(watch(settings, loop.observed))
