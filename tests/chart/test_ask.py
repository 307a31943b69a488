"""What `helm test` runs asks models that are there, and waits for none that is not."""

import asyncio
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.router.gateway import gateway, until
from tests.router.upstream import answer_with, upstream

ASK = Path(__file__).parents[2] / "charts" / "headwater" / "files" / "ask.py"


def ask(
    monkeypatch: pytest.MonkeyPatch, models: list[dict[str, Any]], answers: dict[str, Any]
) -> tuple[Any, list[str]]:
    """The exit status, and which models were asked."""
    asked: list[str] = []

    def opened(request: Any, timeout: float) -> Any:
        assert timeout <= 20
        url = request.full_url
        if url.endswith("/health"):
            return Answer(b'{"status": "ok"}')
        if url.endswith("/v1/models"):
            return Answer(json.dumps({"data": models}).encode())
        name = next(model["id"] for model in models if f'"{model["id"]}"'.encode() in request.data)
        asked.append(name)
        if isinstance(answers[name], Exception):
            raise answers[name]
        return Answer(b'{"choices": [{"message": {"content": "Paris"}}]}')

    monkeypatch.setattr("urllib.request.urlopen", opened)
    monkeypatch.setattr(sys, "argv", ["ask.py", "http://gateway"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ASK))
    return exit.value.code, asked


class Answer:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> bytes:
        return self._body


def card(name: str, ready: bool = True) -> dict[str, Any]:
    return {"id": name, "root": "org/model", "ready": ready}


def test_models_that_no_engine_serves_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, [card("asleep", ready=False), card("ready")], {"ready": "Paris"}) == (None, ["ready"])


def test_one_that_is_late_does_not_fail_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    status, asked = ask(monkeypatch, [card("late"), card("ready")], {"late": TimeoutError("late"), "ready": "Paris"})
    assert (status, asked) == (None, ["late", "ready"])


def test_none_that_answers_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    status, _ = ask(monkeypatch, [card("late")], {"late": TimeoutError("late")})
    assert "none of 1 models answered" in str(status)


def test_none_to_ask_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, [], {}) == (None, [])
    assert ask(monkeypatch, [card("asleep", ready=False)], {}) == (None, [])


# Beside the gateway itself

ANSWER = b'{"choices": [{"message": {"role": "assistant", "content": "Paris"}}]}'
RECORDED = Path(__file__).parents[1] / "fixtures" / "tgi-3.3.7" / "models.txt"
TGI_LIST = next(line for line in RECORDED.read_text().splitlines() if line.startswith("{")).encode()


async def run(port: int) -> tuple[int | None, str]:
    """The exit status, and what was printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ASK),
        f"http://127.0.0.1:{port}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    return process.returncode, told.decode()


async def test_a_server_that_says_nothing_of_its_weights_is_asked() -> None:
    async with upstream() as engine:
        engine.pages[b"/v1/models"] = (200, TGI_LIST)
        engine.answer = answer_with(200, ANSWER)
        async with gateway(endpoint=[f"{engine.url},backend=tgi,model=smollm2"], ready=1) as router:
            status, told = await run(router.port)
            assert (status, len(engine.exchanges)) == (0, 1), told
    assert "smollm2, What is the capital of France?\nParis" in told


async def test_an_engine_that_died_is_not_asked() -> None:
    async with upstream("a-dead") as dead, upstream("b-alive") as alive:
        alive.answer = answer_with(200, ANSWER)
        async with gateway(dead, alive) as router:
            dead.pages[b"/health"] = (503, b"{}")
            await until(lambda: not next(each for each in router.router.fleet if each.name == "a").ready)
            status, told = await run(router.port)
    assert (status, dead.exchanges) == (0, []), told
    assert "b-alive" in told and "a-dead" not in told
