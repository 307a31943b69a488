"""Servers as processes: started, waited for, measured by the CPU they use, stopped with all their children."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import psutil

_SCHEDULED = 2
"""Linux: of the clocks of a process, the one with the time that it was run for."""
_PEER = "--worker-urls {engines} --policy cache_aware --host 127.0.0.1 --port {port} --prometheus-port {metrics}"
_PEER_ROUTERS = {"smg": f"smg launch {_PEER}", "vllm-router": f"vllm-router {_PEER}"}


@contextmanager
def server(command: str, ready: Callable[[], bool], timeout: float = 900) -> Iterator[psutil.Process]:
    """Start `command` and wait until `ready`. Raises SystemExit with the end of its log if it does not come up."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(shlex.split(command), stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + timeout
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{command}: did not start\n{log.read()[-4000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            with suppress(ProcessLookupError):  # it never came up
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that take whatever they get of a core each, and end with this one also where it is killed."""
    loop = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(1_000_000))"
    with ExitStack() as running:
        for _ in range(count):
            process = running.enter_context(subprocess.Popen([sys.executable, "-c", loop, str(os.getpid())]))
            running.callback(process.kill)
        yield


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time so far, of the process and its children."""
    return sum(map(own_cpu_seconds, (process, *process.children(recursive=True))))


def own_cpu_seconds(process: psutil.Process) -> float:
    """User and system time so far, of the process alone."""
    # By the clock that each process has: what psutil shows are ticks of 10 ms.
    return time.clock_gettime((~process.pid << 3) | _SCHEDULED)


def resident_mib(process: psutil.Process) -> float:
    """MiB of resident memory, of the process and its children."""
    return float(sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))) / 2**20


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def peer_routers(given: Sequence[str]) -> dict[str, str]:
    """Commands by name, of `NAME=COMMAND`; where none is given, those of the routers that are in the PATH.

    In a command `{port}`, `{metrics}` (another port) and `{engines}` (URLs, apart by spaces) are to be filled in.
    """
    peers = dict(peer.split("=", 1) for peer in given)
    return peers or {name: command for name, command in _PEER_ROUTERS.items() if shutil.which(name)}
