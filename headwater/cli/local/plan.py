"""The local runtime behind `headwater up`: a ModelDeployment as processes on this machine.

What is planned here, the supervisor runs: each replica with a share of the CPU cores, GPUs of its own and a free port,
and the router, which reads where they are from a file.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from headwater import backends
from headwater.backends.base import Backend
from headwater.cli.local.display import Display
from headwater.cli.local.gpus import share_out, visible_gpus
from headwater.cli.local.process import Process
from headwater.cli.local.runs import BusyError, Part, Run, alone, record
from headwater.cli.local.supervisor import Supervisor
from headwater.listening import cannot_listen
from headwater.resource import ModelDeployment, ResourceError, load

_ANY_ADDRESS = ("0.0.0.0", "::")
_LONGEST_SOCKET = 103
"""Bytes of a Unix socket's path, on any system."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine process, and what the router is told of it."""

    process: Process
    endpoint: dict[str, str]


def up(file: Path, *, host: str, port: int, state: Path, display: Display) -> int:
    """Run what `file` describes until a signal. Returns the exit status. Raises ResourceError."""
    deployments = load(file)
    port = _check_port(host, port)
    folder = state / file.stem
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(folder))
            cores = len(os.sched_getaffinity(0))
            replicas = plan_replicas(deployments, folder, cores=cores, gpus=visible_gpus())
            router = plan_router(deployments, replicas, folder, host=host, port=port)
            processes = [replica.process for replica in replicas]
            run = _written_down(file, router, processes, _names(deployments))
            record(folder, run)
        except BusyError as error:
            raise ResourceError(
                f"{file.name} is up already: headwater stop {file.stem} or kill {error.pid} stops it"
            ) from None
        except OSError as error:
            raise ResourceError(f"{folder} cannot be written: {error.strerror}; choose another --state") from None
        return asyncio.run(Supervisor(router, processes, folder, file, display, run.models).run())


def _names(deployments: Sequence[ModelDeployment]) -> list[str]:
    """What clients may ask for."""
    return list(dict.fromkeys(name for each in deployments for name in (each.name, *each.spec.model.aliases)))


def _written_down(file: Path, router: Process, engines: Sequence[Process], models: list[str]) -> Run:
    parts = [Part(each.name, each.url, each.ready_path, str(each.log.absolute())) for each in (*engines, router)]
    return Run(file.stem, str(file.absolute()), os.getpid(), router.url, models, parts)


def plan_replicas(
    deployments: Sequence[ModelDeployment], folder: Path, *, cores: int, gpus: Sequence[str] = ()
) -> list[Replica]:
    """The engines to start; `gpus`: the names of those that they are given, each to one. Raises ResourceError."""
    numbered = [(each, number) for each in deployments for number in range(each.spec.first_replicas)]
    if not numbered:
        raise ResourceError("there is nothing to run: all deployments have 0 replicas")
    threads = threads_each(cores, len(numbered))
    cpus = {"OMP_NUM_THREADS": str(threads), "HEADWATER_ENGINE_THREADS": str(threads)}
    seen = share_out([(each, _backend(each)) for each, _ in numbered], gpus)
    ports = _free_ports(len(numbered))
    return [
        _plan_replica(deployment, f"{deployment.name}-{number}", folder, {**cpus, **own}, port)
        for (deployment, number), own, port in zip(numbered, seen, ports, strict=True)
    ]


def _plan_replica(
    deployment: ModelDeployment, name: str, folder: Path, environment: dict[str, str], port: int
) -> Replica:
    """`environment`: what it gets of the machine."""
    backend = _backend(deployment)
    backend.refuse_own_flags(deployment)
    url = f"http://127.0.0.1:{port}"
    routing = deployment.spec.routing
    endpoint = {"url": url, "name": name, "backend": backend.name, "deployment": deployment.name}
    endpoint |= {"weight": str(routing.weight), "share": routing.share}
    if backend.answers_to_any_name:
        endpoint["model"] = deployment.name
    events = _events_address(deployment, backend, folder / f"{name}.events")
    if events is not None:
        endpoint["kv_events"] = events
    process = Process(
        name,
        backend.command(deployment, port=port, events=events),
        url,
        backend.ready_path,
        folder / f"{name}.log",
        environment | {**backend.no_statistics, **backend.environment(deployment)},
    )
    return Replica(process, endpoint)


def _events_address(deployment: ModelDeployment, backend: Backend, path: Path) -> str | None:
    """A Unix socket, which this user alone may connect to: events hold all prompts, as token ids. None: no events.

    Without them the router goes by what it sent: where the path is too long for a socket, too, and with data-parallel
    ranks, which publish over TCP only, on all addresses.
    """
    read = backend.publishes_kv_events and deployment.spec.routing.policy == "prefix"
    ranks = deployment.spec.parallelism.data > 1
    path = path.absolute()
    return f"ipc://{path}" if read and not ranks and len(os.fsencode(path)) <= _LONGEST_SOCKET else None


def _backend(deployment: ModelDeployment) -> Backend:
    try:
        return backends.get(deployment.spec.backend.type)
    except backends.UnknownBackendError as error:
        raise ResourceError(f"{deployment.name}: spec.backend.type: {error}") from None


def threads_each(cores: int, replicas: int) -> int:
    """More threads than cores would only wait for one another."""
    return max(1, cores // replicas)


def plan_router(
    deployments: Sequence[ModelDeployment], replicas: Sequence[Replica], folder: Path, *, host: str, port: int
) -> Process:
    """The router process; writes the list of endpoints that it reads. Raises ResourceError."""
    policy = _shared("policy", {deployment.spec.routing.policy for deployment in deployments})
    objective = _shared("objective", {deployment.spec.routing.objective for deployment in deployments})
    endpoints = folder / "endpoints.json"
    endpoints.write_text(json.dumps([replica.endpoint for replica in replicas], indent=2))
    command = [sys.executable, "-m", "headwater", "route", "--host", host, "--port", str(port)]
    command += ["--policy", policy, "--objective", objective]
    command += ["--endpoints-file", str(endpoints), "--expose-endpoint"]
    return Process("router", command, _url(host, port), "/ready", folder / "router.log")


def _shared(name: str, found: AbstractSet[str]) -> str:
    """What all deployments say. Raises ResourceError."""
    if len(found) > 1:
        raise ResourceError(f"spec.routing.{name}: one local router has one {name}; found {', '.join(sorted(found))}")
    return next(iter(found))


def _url(host: str, port: int) -> str:
    if host in _ANY_ADDRESS:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _free_ports(count: int) -> list[int]:
    """Distinct, since all are held until the last is found."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _check_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ResourceError where it is taken."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ResourceError(cannot_listen(host, port, error)) from None
