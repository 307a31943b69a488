"""When a pod counts as started, ready and alive, and how long it has to end."""

import math
from typing import Final

from headwater.backends.base import GROUP_RANK, Backend
from headwater.kubernetes import HTTP_PORT, HTTP_PORT_NAME
from headwater.resource import Spec
from headwater_operator.render.context import Manifest

PROPAGATION: Final = 5
"""Seconds until the routers know that a pod is to end, and send it nothing more."""
_MARGIN: Final = 5
"""Seconds for a server to end once its answers have."""
_STARTUP_PERIOD: Final = 5

_RANK_0_ANSWERS: Final = f"""\
import os, sys, urllib.request
if os.environ["{GROUP_RANK}"] == "0":
    urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2]))
"""
"""Of a group whose workers serve no HTTP, all pods have the same probes: a worker's health is that of its process."""


def probes(backend: Backend, spec: Spec, *, grouped: bool) -> Manifest:
    """The kubelet asks for liveness only after the startup probe, which lasts as long as the weights may take."""
    startup = math.ceil(spec.load_timeout.total_seconds() / _STARTUP_PERIOD)
    ask = _ask_rank_0 if grouped and not backend.workers_answer_probes else _ask
    alive = backend.health_timeout
    return {
        "startupProbe": ask(backend.ready_path, 5)
        | {"periodSeconds": _STARTUP_PERIOD, "failureThreshold": max(startup, 1)},
        "readinessProbe": ask(backend.ready_path, 5) | {"periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": ask(backend.health_path, alive) | {"periodSeconds": max(10, alive), "failureThreshold": 6},
    }


def _ask(path: str, timeout: int) -> Manifest:
    return {"httpGet": {"path": path, "port": HTTP_PORT_NAME}, "timeoutSeconds": timeout}


def _ask_rank_0(path: str, timeout: int) -> Manifest:
    url = f"http://127.0.0.1:{HTTP_PORT}{path}"
    command = ["python3", "-c", _RANK_0_ANSWERS, url, str(timeout)]
    return {"exec": {"command": command}, "timeoutSeconds": timeout + 2}  # an interpreter has to start, too


def drain(spec: Spec) -> int:
    """Seconds that running answers get. All that follows from it is computed here."""
    return math.ceil(spec.drain_timeout.total_seconds())


def grace(spec: Spec) -> int:
    """Seconds from the decision to end a pod to its being killed."""
    return PROPAGATION + drain(spec) + _MARGIN


def pre_stop(drains: float, spec: Spec, *, grouped: bool) -> int:
    """Seconds that SIGTERM is put off: a server that does not wait for its answers must not get it before they end.
    `drains`: seconds that it waits.

    Neither must a group: its workers know of no answers, and rank 0 can finish none without them.
    """
    waits = 0 if grouped else drains
    return PROPAGATION + math.ceil(max(0, drain(spec) - waits))
