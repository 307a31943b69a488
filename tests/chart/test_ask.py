"""What `helm test` runs asks models that are there, and waits for none that is not."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

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
            return Answer(repr({"data": models}).replace("'", '"').replace("None", "null").encode())
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


def card(name: str, root: str | None = "org/model") -> dict[str, Any]:
    return {"id": name, "root": root}


def test_models_that_no_engine_serves_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, [card("asleep", None), card("ready")], {"ready": "Paris"}) == (None, ["ready"])


def test_one_that_is_late_does_not_fail_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    status, asked = ask(monkeypatch, [card("late"), card("ready")], {"late": TimeoutError("late"), "ready": "Paris"})
    assert (status, asked) == (None, ["late", "ready"])


def test_none_that_answers_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    status, _ = ask(monkeypatch, [card("late")], {"late": TimeoutError("late")})
    assert "none of 1 models answered" in str(status)


def test_none_to_ask_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, [], {}) == (None, [])
    assert ask(monkeypatch, [card("asleep", None)], {}) == (None, [])
