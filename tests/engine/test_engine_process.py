"""The engine process never outlives the HTTP process, whatever it is doing when that is killed."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from headwater_engine.core import parent

_PARENT = """
import asyncio, json, sys
from headwater.logs import configure_logging
from headwater_engine.config import EngineSettings
from headwater_engine.server.client import EngineClient

async def main():
    configure_logging("warning")
    async with EngineClient(EngineSettings(**json.loads(sys.argv[1]))) as client:
        print(client.group.processes[0].pid, flush=True)
        await client.until_ready()
        print("ready", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""
_PATIENCE = 180
"""Seconds after which something hangs."""


@asynccontextmanager
async def parent_of_an_engine(
    environment: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[tuple[asyncio.subprocess.Process, psutil.Process]]:
    """A process with an engine process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PARENT,
        json.dumps({"model": "random:tiny", "log_level": "warning", **settings}),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | (environment or {}),
    )
    engine = psutil.Process(int(await line_of(process)))
    try:
        yield process, engine
    finally:
        for each in (process, engine):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                each.kill()
        await process.communicate()  # all that hold its stdout are gone


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), _PATIENCE)).decode().strip()


def gone(process: psutil.Process) -> bool:
    """Also where nobody has asked for its status."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def ends(process: psutil.Process) -> bool:
    end = time.monotonic() + _PATIENCE
    while not gone(process):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


async def test_an_engine_process_whose_parent_is_killed_as_it_starts_ends() -> None:
    async with parent_of_an_engine() as (process, engine):
        process.kill()
        assert await ends(engine)


async def test_signals_to_all_processes_do_nothing_to_one_that_has_yet_to_import_the_model() -> None:
    program = "from headwater_engine.core import parent; parent.end_with_parent(); print(flush=True); input()"
    environment = {**os.environ, parent.VARIABLE: str(os.getpid())}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    await process.communicate(b"\n")
    assert process.returncode == 0


async def test_an_engine_process_whose_parent_is_killed_while_it_loads_ends(tmp_path: Path) -> None:
    """While the kernels are compiled, by a compiler that never comes to an end."""
    pipe, compiler = tmp_path / "pipe", tmp_path / "compiler"
    os.mkfifo(pipe)
    compiler.write_text(f"#!/bin/sh\nread line < {pipe}\nexit 1\n")
    compiler.chmod(0o755)
    environment = {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    async with parent_of_an_engine(environment) as (process, engine):
        writer = await opened_by_others(pipe, engine)
        process.kill()
        try:
            assert await ends(engine)
        finally:
            os.close(writer)


async def opened_by_others(pipe: Path, engine: psutil.Process) -> int:
    """Our end of the pipe, once somebody reads at the other."""
    while True:
        assert not gone(engine)
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            await asyncio.sleep(0.02)


async def test_an_engine_process_whose_parent_is_killed_while_it_serves_ends() -> None:
    async with parent_of_an_engine({"HEADWATER_KERNELS": "torch"}) as (process, engine):
        assert await line_of(process) == "ready"
        process.kill()
        assert await ends(engine)


def test_an_engine_process_whose_parent_is_gone_before_it_asks_leaves_before_it_loads_anything() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        pass
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "headwater_engine.core", "ipc://none", "ipc://none"],
        env=os.environ | {parent.VARIABLE: str(other.pid)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, "The HTTP process is gone.")
    assert "torch" not in result.stderr
