"""README's commands, followed word for word, but for the port: what it prints is what comes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.system.conftest import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
PATIENCE = 180


def blocks(heading: str, language: str) -> list[str]:
    section = re.search(rf"^## {heading}$(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert section
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    return [text for each, text in found if each == language]


def commands(block: str) -> list[str]:
    """One for each command, which may go on over lines."""
    return [line.strip() for line in re.split(r"(?<!\\)\n", block) if line.strip()]


@contextmanager
def running(command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """In a shell, as somebody types it; Ctrl-C ends it."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def until_said(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in log.read_text(errors="replace"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.1)


def printed(command: str) -> str:
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_start_without_a_cluster(tmp_path: Path) -> None:
    first, ask = (commands(block) for block in blocks("Start without a cluster", "sh"))
    (answer,) = blocks("Start without a cluster", "")
    (python,) = blocks("Start without a cluster", "python")
    port, log = free_port(), tmp_path / "demo"
    # What is set up already is not set up again, and where tests run it may be elsewhere.
    make = f"make -o .venv/.set-up BIN={BIN} PORT={port}"
    with running(first[1].replace("make", make, 1), log) as demo:
        until_said("Try from another terminal", log, demo)
        assert [printed(each.replace("8080", str(port))) for each in ask] == [answer]
        program = subprocess.run(
            [sys.executable, "-c", python.replace("8080", str(port))], capture_output=True, text=True, timeout=PATIENCE
        )
        assert "river" in program.stdout, program.stderr
    assert "Seine" in log.read_text()


def test_the_parts_by_themselves(tmp_path: Path) -> None:
    (block,) = blocks("The parts", "sh")
    _, serve, route, _, bench, _ = commands(block)
    engine, gateway = free_port(), free_port()
    serve, route = (each.replace("8000", str(engine)).replace("8080", str(gateway)) for each in (serve, route))
    with (
        running(serve, tmp_path / "serve") as serving,
        running(route, tmp_path / "route") as routing,
    ):
        until_said('"event": "ready"', tmp_path / "serve", serving)
        until_said('"event": "routing"', tmp_path / "route", routing)
        deadline = time.monotonic() + PATIENCE
        while httpx.get(f"http://127.0.0.1:{gateway}/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (ask,) = commands(blocks("Start without a cluster", "sh")[1])
        assert printed(ask.replace("8080", str(gateway))) == blocks("Start without a cluster", "")[0]
        few = bench.replace("8080", str(gateway)).replace("bench", "bench --requests 4 --max-tokens 4", 1)
        assert "4 in " in printed(f"PATH={BIN}:$PATH {few}")
    assert serving.returncode == routing.returncode == 0
