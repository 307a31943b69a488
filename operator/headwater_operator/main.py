"""The operator's process: take the Lease, see what there is, and from then on turn events into keys.

kopf watches and nothing else: its handlers put what they are told into the store and a key into the queue. Everything
that is decided is decided by a worker that looks at one ModelDeployment as it is, whatever event led there.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import uuid
from typing import Any

import httpx
import kopf
import structlog

from headwater.kubernetes import GROUP, LABEL_MANAGED_BY, MANAGED_BY, PLURAL, VERSION
from headwater.lag import LoopLag
from headwater.logs import configure_logging
from headwater_operator.adapting import Adapting
from headwater_operator.admin_keys import AdminKeys
from headwater_operator.api import ApiError, Cluster
from headwater_operator.applier import Applier
from headwater_operator.config import OperatorSettings
from headwater_operator.controller import Controller
from headwater_operator.events import EventRecorder
from headwater_operator.healing import Healing
from headwater_operator.kinds import CHILDREN, Object
from headwater_operator.lease import LeaseHolder, LeaseLostError
from headwater_operator.lease_thread import LEASE_LOST, LeaseThread
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.preparing import Preparing
from headwater_operator.probes import serve_probes
from headwater_operator.racing import first
from headwater_operator.realize import Realizer
from headwater_operator.reconcile import Reconciler
from headwater_operator.scaling import Scaling
from headwater_operator.store import Store
from headwater_operator.sweep import Sweep

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
    gc.set_threshold(10_000, 5, 1000)


async def operate(settings: OperatorSettings) -> None:
    """Wait for the Lease, then act until a signal or until it is lost. Raises LeaseLostError, ApiError."""
    metrics = OperatorMetrics()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    identity = f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    async with Cluster(metrics) as cluster, httpx.AsyncClient() as engines:
        controller, lag = _build(settings, cluster, metrics, identity, engines), LoopLag()
        async with (
            serve_probes(settings.host, settings.port, metrics, controller, lag),
            _lease(settings, metrics, identity) as lease,
        ):
            log.info("waiting for the Lease", name=f"{settings.lease_namespace}/{settings.lease_name}")
            if not await first(lease.acquired(), stop.wait()):
                return
            metrics.leader.set(1)
            log.info("acting", identity=identity, namespaces=settings.namespaces or "all")
            try:
                await first(lease.lost(), _act(settings, controller), lag.run(), stop.wait())
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
) -> Controller:
    store = Store()
    scaling = Scaling(settings, cluster, metrics)
    recorder = EventRecorder(cluster, identity)
    applier = Applier(cluster, store, metrics)
    sweep = Sweep(cluster, store, applier)
    preparing = Preparing(settings, store, applier, sweep)
    keys = AdminKeys(settings, cluster)
    adapting = Adapting(engines, keys)
    healing = Healing(cluster, store, recorder)
    realizer = Realizer(settings, cluster, store, applier, recorder, scaling, preparing, adapting, keys, healing)
    reconciler = Reconciler(settings, cluster, store, healing, realizer, sweep, recorder, scaling, metrics)
    return Controller(settings, cluster, store, reconciler, scaling, metrics)


async def _act(settings: OperatorSettings, controller: Controller) -> None:
    await controller.load()
    async with asyncio.TaskGroup() as group:
        group.create_task(controller.run())
        group.create_task(_watch(settings, controller))


async def _watch(settings: OperatorSettings, controller: Controller) -> None:
    """Have kopf watch the resource and its children until cancelled.

    In a thread and a loop of its own: it takes the main thread's signals for itself, and ends all tasks of its loop.
    """
    stop = threading.Event()
    watching = kopf.operator(
        registry=_registry(controller, asyncio.get_running_loop()),
        settings=_kopf_settings(settings),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=stop,
    )
    try:
        await asyncio.to_thread(asyncio.run, watching)
    finally:
        stop.set()
    raise RuntimeError("the watches ended by themselves")


def _registry(controller: Controller, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    ours = {LABEL_MANAGED_BY: MANAGED_BY}

    async def observed(type: str | None, body: kopf.Body, **_: Any) -> None:
        loop.call_soon_threadsafe(controller.observed, _plain(body), type == "DELETED")

    def login(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    kopf.on.login(id="login", registry=registry)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, id="resource", registry=registry)(observed)
    for kind in CHILDREN:
        group, _, version = kind.api_version.rpartition("/")
        kopf.on.event(group, version, kind.plural, id=kind.plural, labels=ours, registry=registry)(observed)
    return registry


def _plain(body: kopf.Body) -> Object:
    """The object itself: kopf hands out a view of it."""
    raw: Object = dict(body)
    return raw


def _kopf_settings(settings: OperatorSettings) -> kopf.OperatorSettings:
    ours = kopf.OperatorSettings()
    ours.posting.enabled = False
    ours.networking.request_timeout = 30
    # A watch that a broken network keeps open forever is one that nothing is heard from.
    ours.watching.server_timeout = 300
    ours.watching.client_timeout = 330
    ours.watching.connect_timeout = 10
    ours.queueing.worker_limit = 64
    ours.queueing.exit_timeout = 0.5  # what is not handed on in time, the next operator reads anew
    if settings.namespaces:
        # Looking for new kinds and namespaces needs rights on the whole cluster.
        ours.scanning.disabled = True
    for kind in CHILDREN:
        group, _, version = kind.api_version.rpartition("/")
        ours.watching.label_selectors[group, version, kind.plural] = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
    return ours
