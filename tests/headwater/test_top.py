"""`headwater top`: what it reads out of a router's metrics, on a page and on a terminal."""

import asyncio
import shutil
import subprocess
import sys
import time

import httpx
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


@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux here")
async def test_it_fills_a_terminal_with_what_a_real_router_says(tmp_path) -> None:
    async with upstream() as engine, gateway(engine) as router:
        await router.post()
        command = [sys.executable, "-m", "headwater", "top", f"http://127.0.0.1:{router.port}", "--interval", "0.2"]
        server = str(tmp_path / "tmux")
        await asyncio.to_thread(tmux, server, "new-session", "-d", "-x", "120", "-y", "30", "--", *command)
        try:
            until, screen = time.monotonic() + 60, ""
            while "requests open" not in screen:
                assert time.monotonic() < until, screen
                screen = await asyncio.to_thread(tmux, server, "capture-pane", "-p")
            (row,) = (line.split() for line in screen.splitlines() if line.startswith("a "))
            assert row[:3] == ["a", "yes", "0"]
        finally:
            await asyncio.to_thread(tmux, server, "kill-server")


def tmux(server: str, *command: str) -> str:
    return subprocess.run(["tmux", "-S", server, *command], capture_output=True, text=True, check=True).stdout
