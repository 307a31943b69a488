"""The server's process: how it ends, with which status, and what it says."""

import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from headwater_engine.config import EngineSettings
from headwater_engine.core.messages import Failed, FinishReason
from headwater_engine.server.client import EngineClient
from headwater_engine.server.serve import EngineServer
from tests.engine.fake_engine import FakeEngine
from tests.engine.front import CHAT, TEXT, free_port, settings_of, until

_SERVE = """
import json, sys
from headwater_engine.config import EngineSettings
from headwater_engine.server.serve import run
settings, command = json.loads(sys.argv[1])
sys.exit(run(EngineSettings(**settings), command))
"""


@dataclass(slots=True)
class Server:
    process: asyncio.subprocess.Process
    http: httpx.AsyncClient

    async def end(self) -> tuple[int, str]:
        """Exit status and stderr, once it is gone by itself."""
        _, errors = await asyncio.wait_for(self.process.communicate(), 120)
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def serving(command: list[str], **changes: Any) -> AsyncIterator[Server]:
    """The server as a process of its own, around the engine of `command`."""
    settings = {"model": "random:tiny", "port": free_port(), "log_level": "warning", **changes}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVE, json.dumps([settings, command]), stderr=asyncio.subprocess.PIPE
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings['port']}", timeout=60) as http:
        try:
            yield Server(process, http)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture
async def server(engine: FakeEngine) -> AsyncIterator[Server]:
    async with serving(engine.command) as server:
        await until(server.http, "/health", 200)
        await engine.be_ready()
        await until(server.http, "/ready", 200)
        yield server


def stream(server: Server) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(server.http.post("/v1/completions", json={**TEXT, "stream": True}))


def last_event(answer: httpx.Response) -> dict[str, Any]:
    """Of a stream that failed: it has no [DONE]."""
    assert "[DONE]" not in answer.text
    last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert isinstance(last, dict)
    return last


# Failures


async def test_a_model_that_the_engine_cannot_load_ends_it_with_one_sentence(engine: FakeEngine) -> None:
    async with serving(engine.command) as server:
        await until(server.http, "/health", 200)
        await engine.say(Failed("The KV cache has no room."))
        await engine.exit(1)
        status, errors = await server.end()
    assert status == 1
    assert errors.splitlines()[-1] == "headwater serve: The KV cache has no room."
    assert "Traceback" not in errors


async def test_a_model_that_is_not_there_ends_it_with_one_sentence(engine: FakeEngine) -> None:
    async with serving(engine.command, model="/no/such/model") as server:
        status, errors = await server.end()
    assert (status, errors.count("headwater serve: ")) == (1, 1)
    assert "/no/such/model" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"])
async def test_an_engine_that_never_comes_up_ends_it(program: str) -> None:
    async with serving([sys.executable, "-c", program]) as server:
        status, errors = await server.end()
    assert status == 1
    assert "The engine process died with " in errors
    assert "Traceback" not in errors


async def test_an_engine_process_that_cannot_be_started_ends_it_with_one_sentence() -> None:
    async with serving(["/no/such/program"]) as server:
        assert await server.end() == (
            1,
            "headwater serve: The engine process cannot be started: No such file or directory.\n",
        )


async def test_no_folder_for_sockets_ends_it_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where no temporary folder can be written."""
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    assert await EngineServer(settings_of(), ["true"]).run() == 1
    assert capsys.readouterr().err == (
        "headwater serve: The engine process gets no folder to be reached in: No such file or directory.\n"
    )


async def test_an_engine_that_dies_fails_open_requests_and_ends_the_server(server: Server, engine: FakeEngine) -> None:
    whole = asyncio.create_task(server.http.post("/v1/completions", json=TEXT))
    await engine.hear_question()
    streamed = stream(server)
    await engine.answer(await engine.hear_question(), "begun")
    await engine.exit(9)
    status, errors = await server.end()
    assert status == 1
    assert "Traceback" not in errors
    assert (await whole).status_code == 500
    assert set((await whole).json()["error"]) == {"message", "type", "param", "code"}
    assert (await whole).json()["error"]["code"] == "engine_dead"
    assert last_event(await streamed)["error"]["code"] == "engine_dead"


async def test_a_taken_port_ends_it(engine: FakeEngine, server: Server) -> None:
    async with serving(engine.command, port=server.http.base_url.port) as second:
        status, errors = await second.end()
    assert status == 1
    assert "another program listens there; choose another --port" in errors
    assert "Traceback" not in errors


# Signals


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_streams_finish(server: Server, engine: FakeEngine, sent: signal.Signals) -> None:
    running = stream(server)
    question = await engine.hear_question()
    server.process.send_signal(sent)
    draining = await until(server.http, "/ready", 503)
    assert draining.json()["status"] == "draining"
    refused = await server.http.post("/v1/completions", json=TEXT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert (await server.http.get("/health")).status_code == 200
    await engine.answer(question, "done", FinishReason.STOP)
    assert (await running).text.endswith("data: [DONE]\n\n")
    status, errors = await server.end()
    assert (status, errors) == (0, "")


async def test_streams_end_when_their_time_is_up(engine: FakeEngine) -> None:
    async with serving(engine.command, shutdown_timeout=0) as server:
        await until(server.http, "/health", 200)
        await engine.be_ready()
        await until(server.http, "/ready", 200)
        running = stream(server)
        await engine.hear_question()
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == (0, "")
        assert "The server ended" in last_event(await running)["error"]["message"]


async def test_a_second_signal_ends_it_at_once(server: Server, engine: FakeEngine) -> None:
    running = stream(server)
    await engine.hear_question()
    server.process.send_signal(signal.SIGTERM)
    await until(server.http, "/ready", 503)
    server.process.send_signal(signal.SIGTERM)
    assert await server.end() == (0, "")
    assert "The server ended" in last_event(await running)["error"]["message"]


async def test_an_engine_that_stands_still_is_not_waited_for_once_the_time_is_up(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater_engine.server.client._TO_LEAVE", 3600.0)
    async with asyncio.timeout(120):
        async with EngineClient(EngineSettings(model="random:tiny"), engine.command) as client:
            await engine.be_ready()
            await client.until_ready()
            client.group.processes[0].send_signal(signal.SIGSTOP)
            client.leaves_by = asyncio.get_running_loop().time()


async def test_chats_whose_template_never_ends_keep_it_from_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    template = tmp_path / "endless.jinja"
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template.write_text("{% if messages[0].content == 'Hi' %}" + endless + "{% endif %}{{ messages }}")
    async with serving(engine.command, chat_template=str(template), shutdown_timeout=0) as server:
        await until(server.http, "/health", 200)
        await engine.be_ready()
        await until(server.http, "/ready", 200)
        chats = [asyncio.create_task(server.http.post("/v1/chat/completions", json=CHAT)) for _ in range(8)]
        for _ in range(20):  # The chat came before them.
            assert (await server.http.get("/health")).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == (0, "")
        for answer in await asyncio.gather(*chats, return_exceptions=True):
            assert isinstance(answer, httpx.TransportError) or answer.status_code in (400, 503), answer.text


async def test_a_template_that_cannot_be_used_ends_it_with_one_sentence(engine: FakeEngine, tmp_path: Path) -> None:
    template = tmp_path / "wrong.jinja"
    template.write_text("{% for message in messages %}\n{{ message. }}")
    async with serving(engine.command, chat_template=str(template)) as server:
        status, errors = await server.end()
    assert status == 1
    assert errors == "headwater serve: The chat template cannot be used: expected name or number (line 2).\n"


async def test_a_signal_ends_it_while_the_weights_load() -> None:
    """Also where the engine process does not hear anything yet."""
    async with serving([sys.executable, "-c", "import time; time.sleep(60)"]) as server:
        await until(server.http, "/health", 200)
        server.process.send_signal(signal.SIGTERM)
        assert await server.end() == (0, "")
