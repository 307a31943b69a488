"""`headwater top`: what it reads out of a router's metrics, on a page and on a terminal."""

import asyncio
import fcntl
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyte
import pytest
from rich.console import Console

from headwater.cli import main
from headwater.cli.parser import CommandError
from headwater.cli.top import Reading, look, view
from tests.router.gateway import gateway
from tests.router.upstream import upstream


def shown(before: Reading, now: Reading) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(view(before, now))
    return capture.get()


def reading(at: float, **values: dict[str, float]) -> Reading:
    made = Reading(at)
    made.values.update(values)
    return made


def test_what_grows_is_told_a_second() -> None:
    before = reading(10.0, requests_total={"200": 4}, prompt_tokens_total={"m": 100}, output_tokens_total={"m": 10})
    now = reading(
        12.0,
        requests_total={"200": 10, "503": 2},
        prompt_tokens_total={"m": 300},
        output_tokens_total={"m": 20},
        actual_cached_tokens_total={"m": 150},
        open_requests={"": 3},
        endpoint_ready={"a": 1, "b": 0},
        endpoint_in_flight={"a": 2},
        endpoint_reported_cache_usage={"a": 0.5},
        key_requests_total={"team": 2},
    )
    text = shown(before, now)
    assert "3 requests open   4.0 answered/s   50% of prompts came from caches" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["a", "yes", "2", "50%"] in rows and ["b", "no"] in rows
    assert ["m", "100.0", "5.0"] in rows
    assert ["team", "1.0"] in rows


def test_a_router_that_began_anew_is_not_told_below_nothing() -> None:
    text = shown(reading(0, requests_total={"200": 9}), reading(1, requests_total={"200": 1}))
    assert " 0.0 answered/s" in text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(404), "with --admin-port it is on that port alone"),
        (httpx.Response(200, text="other_metric 1\n"), "has nothing of a router"),
    ],
)
def test_what_is_no_router_is_said_to_be_none(answer: httpx.Response, message: str) -> None:
    with (
        httpx.Client(transport=httpx.MockTransport(lambda request: answer)) as client,
        pytest.raises(CommandError, match=message),
    ):
        look(client, "http://h")


def test_nobody_there_is_one_sentence(capsys) -> None:
    assert main(["top", "http://127.0.0.1:9", "--once"]) == 1
    assert capsys.readouterr().err.startswith("headwater top: http://127.0.0.1:9 cannot be reached")


def asked(prefix: str, endpoint: str, *, attempt: int = 1, cached: int = 60) -> dict[str, object]:
    candidates = [{"endpoint": endpoint, "cached_tokens": cached}]
    made = {"prefix": prefix, "endpoint": endpoint, "attempt": attempt, "model": "m", "prompt_tokens": 100}
    return made | {"candidates": candidates}


def test_beginnings_that_are_asked_for_most_are_told_and_not_those_of_one_request() -> None:
    now = reading(0.0)
    now.decisions = [asked("a" * 16, "x"), asked("a" * 16, "y", cached=0), asked("a" * 16, "y", attempt=2)]
    now.decisions += [asked("b" * 16, "x"), *[asked(f"{n:016}", "z") for n in range(8) for _ in range(3)]]
    rows = [line.split(maxsplit=4) for line in shown(reading(0.0), now).splitlines()]
    assert [row for row in rows if row and row[-1] == "z"] == [["00000000", "m", "3", "60%", "z"]] * 5
    assert "of the last 28" in shown(reading(0.0), now)
    now.decisions = now.decisions[:4]
    rows = [line.split(maxsplit=4) for line in shown(reading(0.0), now).splitlines()]
    assert ["aaaaaaaa", "m", "2", "40%", "x, y"] in rows
    assert "bbbbbbbb" not in shown(reading(0.0), now)


@pytest.mark.parametrize("answer", [httpx.Response(403), httpx.Response(200, text="no"), httpx.Response(200, json={})])
def test_without_an_admin_api_all_else_is_told(answer: httpx.Response) -> None:
    pages = {"/metrics": httpx.Response(200, text="headwater_router_open_requests 3\n"), "/admin/decisions": answer}
    with httpx.Client(transport=httpx.MockTransport(lambda request: pages[request.url.path])) as client:
        text = shown(look(client, "http://h"), look(client, "http://h"))
    assert "3 requests open" in text and "prefix" not in text


async def test_a_real_router_tells_that_prompts_begin_alike() -> None:
    async with upstream() as engine, gateway(engine, policy="prefix", admin_port=0) as router:
        for ending in ("one", "two"):
            content = "The same beginning. " * 60 + ending
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]})
            assert (await router.post(body.encode())).status_code == 200
        await router.post()
        admin = router.router.admin_server()
        assert admin is not None
        admin.start()
        try:
            with httpx.Client() as client:
                now = await asyncio.to_thread(look, client, f"http://127.0.0.1:{admin.port}")
        finally:
            await admin.close()
    rows = [line.split() for line in shown(now, now).splitlines()]
    assert ["m", "2"] in [row[1:3] for row in rows]


@contextmanager
def in_tmux(command: list[str], folder: Path) -> Iterator[Callable[[], str]]:
    def tmux(*words: str) -> str:
        call = ["tmux", "-S", str(folder / "tmux"), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout

    tmux("new-session", "-d", "-x", "120", "-y", "30", "--", *command)
    try:
        yield lambda: tmux("capture-pane", "-p")
    finally:
        tmux("kill-server")


@contextmanager
def in_pty(command: list[str], _: Path) -> Iterator[Callable[[], str]]:
    """For machines without tmux."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    screen = pyte.Screen(120, 30)
    stream = pyte.ByteStream(screen)

    def shown_now() -> str:
        if select.select([ours], [], [], 0.05)[0]:
            stream.feed(os.read(ours, 65536))
        return "\n".join(line.rstrip() for line in screen.display)

    environment = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        try:
            yield shown_now
        finally:
            process.kill()
            os.close(theirs)
            os.close(ours)


@pytest.mark.parametrize("terminal", [in_tmux, in_pty])
async def test_it_fills_a_terminal_with_what_a_real_router_says(terminal, tmp_path: Path) -> None:
    if terminal is in_tmux and shutil.which("tmux") is None:
        pytest.skip("there is no tmux here")
    async with upstream() as engine, gateway(engine) as router:
        await router.post()
        command = [sys.executable, "-m", "headwater", "top", f"http://127.0.0.1:{router.port}", "--interval", "0.2"]
        with terminal(command, tmp_path) as look_at:
            until, screen = time.monotonic() + 60, ""
            while "requests open" not in screen or "\na " not in screen:
                assert time.monotonic() < until, screen
                screen = await asyncio.to_thread(look_at)
            (row,) = (line.split() for line in screen.splitlines() if line.startswith("a "))
            assert row[:3] == ["a", "yes", "0"]
