"""kopf watches, and nothing else: what it is told is passed on to the loop that decides."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import kopf

from headwater.kubernetes import GROUP, LABEL_MANAGED_BY, MANAGED_BY, PLURAL, VERSION
from headwater_operator.cluster.kinds import CHILDREN, Object
from headwater_operator.config import OperatorSettings

Observed = Callable[[Object, bool], None]
"""Is given an object, and whether it is gone."""


async def watch(settings: OperatorSettings, observed: Observed) -> None:
    """Have kopf watch the resource and its children until cancelled, and tell what it sees in this loop.

    In a thread and a loop of its own: it takes the main thread's signals for itself, and ends all tasks of its loop.
    """
    stop = threading.Event()
    watching = kopf.operator(
        registry=_registry(observed, asyncio.get_running_loop()),
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


def _registry(observed: Observed, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    ours = {LABEL_MANAGED_BY: MANAGED_BY}

    async def tell(type: str | None, body: kopf.Body, **_: Any) -> None:
        loop.call_soon_threadsafe(observed, _plain(body), type == "DELETED")

    def login(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    kopf.on.login(id="login", registry=registry)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, id="resource", registry=registry)(tell)
    for kind in CHILDREN:
        group, _, version = kind.api_version.rpartition("/")
        kopf.on.event(group, version, kind.plural, id=kind.plural, labels=ours, registry=registry)(tell)
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
