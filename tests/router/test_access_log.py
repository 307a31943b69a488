"""The access log: lines that a program reads, of bounded length, which cost no request anything wherever they go."""

import asyncio
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headwater.tally import Count
from headwater_router.gateway import access_log as module
from headwater_router.gateway.access_log import AccessLog, AccessRecord, Try, open_access_log
from tests.router.gateway import until

NOON = datetime(2026, 11, 27, 12, 0, 0, 123456, tzinfo=UTC)


def record(**fields: Any) -> AccessRecord:
    given = {"time": NOON, "id": "1", "client": "10.0.0.9", "method": "POST", "path": "/v1/completions"}
    return AccessRecord(**given | {"status": 200, "outcome": "answered", "seconds": 1.0} | fields)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def dropped() -> Count:
    return Count()


@pytest.fixture
async def log(tmp_path: Path, dropped: Count) -> Any:
    opened = open_access_log(str(tmp_path / "access.log"), dropped)
    assert opened is not None
    yield opened
    opened.close()


async def test_a_line_says_all_of_a_request(log: AccessLog, tmp_path: Path) -> None:
    log.write(
        record(
            key="team-a",
            model="m",
            decision="exact",
            tries=[Try("a", "unreachable", "Connection refused"), Try("b", "answered")],
            prompt_tokens=7,
            cached_tokens=3,
            output_tokens=9,
            queued=0.00012345678,
            first_token=0.25,
            seconds=1.5,
            bytes_in=100,
            bytes_out=2000,
        )
    )
    log.close()
    assert lines(tmp_path / "access.log") == [
        {
            "time": "2026-11-27T12:00:00.123456Z",
            "id": "1",
            "client": "10.0.0.9",
            "key": "team-a",
            "method": "POST",
            "path": "/v1/completions",
            "model": "m",
            "status": 200,
            "outcome": "answered",
            "error": "",
            "decision": "exact",
            "tries": [
                {"endpoint": "a", "outcome": "unreachable", "reason": "Connection refused"},
                {"endpoint": "b", "outcome": "answered", "reason": ""},
            ],
            "prompt_tokens": 7,
            "cached_tokens": 3,
            "output_tokens": 9,
            "queued": 0.000123,
            "first_token": 0.25,
            "seconds": 1.5,
            "bytes_in": 100,
            "bytes_out": 2000,
        }
    ]


@pytest.mark.parametrize("text", ["x" * 2**20, "a\nb\r\n\x00\x1b[31m", '"}\n{"status":200', "\ud800half", "ä" * 500])
async def test_what_a_client_sends_makes_one_line_of_bounded_length(text: str, log: AccessLog, tmp_path: Path) -> None:
    log.write(record(id=text, path=text, model=text, error=text))
    log.close()
    content = (tmp_path / "access.log").read_bytes()
    assert content.count(b"\n") == 1
    assert b"\x1b" not in content
    assert len(content) < 2500
    (line,) = lines(tmp_path / "access.log")
    assert line["status"] == 200
    assert [len(line[name]) for name in ("id", "path", "model", "error")] == [
        min(len(text), most) for most in (128, 256, 128, 256)
    ]  # fmt: skip


async def test_lines_are_written_together_and_by_themselves(
    tmp_path: Path, dropped: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda file, data: writes.append(len(data)) or write(file, data))
    log = open_access_log(str(tmp_path / "access.log"), dropped)
    for n in range(50):
        log.write(record(id=str(n)))
    assert writes == []
    await until(lambda: len(lines(tmp_path / "access.log")) == 50)
    assert len(writes) == 1
    assert log._timer is None
    big = record(path="x" * 256, model="m" * 128)
    for _ in range(200):
        log.write(big)
    await until(lambda: len(writes) > 1)
    log.close()
    assert max(writes) < 2 * 64 * 1024
    assert len(lines(tmp_path / "access.log")) == 250


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """In the place of stdout."""
    reading, writing = os.pipe()
    stdout = SimpleNamespace(fileno=lambda: writing)
    monkeypatch.setattr(module, "sys", SimpleNamespace(stdout=stdout))
    yield reading, writing
    for file in (reading, writing):
        try:
            os.close(file)
        except OSError:
            continue


def read_all(file: int, size: int) -> bytes:
    content = b""
    while len(content) < size:
        content += os.read(file, 2**20)
    return content


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_pipe_that_nobody_reads_costs_lines_and_nothing_else(
    blocking: bool, pipe: tuple[int, int], dropped: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe
    os.set_blocking(writing, blocking)
    monkeypatch.setattr(module, "_MOST_WAITING", 300_000)
    monkeypatch.setattr(module, "_LAST_LINES", 0.01)
    log = open_access_log("-", dropped)
    for n in range(5000):
        log.write(record(id=str(n)))
    log.flush()
    assert 0 < dropped.value < 5000
    kept = 5000 - int(dropped.value)
    assert log._writer._taken <= 300_000
    log.close()  # does not wait for the pipe
    content = await asyncio.to_thread(read_all, reading, log._writer._taken)
    assert content.count(b"\n") == kept
    assert [int(json.loads(line)["id"]) for line in content.splitlines()[:100]] == list(range(100))
    assert dropped.value == 5000 - kept
    log._writer._thread.join(30)


async def test_a_full_disk_is_counted_and_told_of_once(dropped: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(module.log, "error", lambda text, reason: told.append(reason), raising=False)
    log = open_access_log("/dev/full", dropped)
    for _ in range(3):
        log.write(record())
        log.flush()
    log.close()
    assert dropped.value == 3
    assert told == [os.strerror(errno.ENOSPC)]


async def test_a_reader_that_is_gone_is_no_failure_of_the_router(pipe: tuple[int, int], dropped: Count) -> None:
    os.close(pipe[0])
    log = open_access_log("-", dropped)
    log.write(record())
    log.close()
    assert dropped.value == 1


async def test_a_line_that_was_cut_does_not_spoil_the_next(
    tmp_path: Path, dropped: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of a line, and then it is not."""
    write: Callable[[int, bytes], int] = os.write
    full = threading.Event()

    def limited(file: int, data: bytes) -> int:
        if not full.is_set():
            full.set()
            return write(file, bytes(data[:30]))
        if len(data) > 30 and limited.fails:
            limited.fails = False
            raise OSError(errno.ENOSPC, "full")
        return write(file, data)

    limited.fails = True
    monkeypatch.setattr(module.os, "write", limited)
    log = open_access_log(str(tmp_path / "access.log"), dropped)
    log.write(record(id="first"))
    log.flush()
    log.write(record(id="second"))
    log.close()
    first, second = (tmp_path / "access.log").read_text().splitlines()
    assert len(first) == 30
    assert json.loads(second)["id"] == "second"
    assert dropped.value == 1


async def test_a_file_that_is_rotated_away_is_begun_anew(log: AccessLog, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log.write(record(id="1"))
    log.flush()
    await until(lambda: len(lines(path)) == 1)
    path.rename(tmp_path / "access.log.1")
    log.write(record(id="2"))
    log.flush()
    await until(lambda: len(lines(path)) == 1)
    assert [line["id"] for line in lines(tmp_path / "access.log.1")] == ["1"]
    assert [line["id"] for line in lines(path)] == ["2"]


async def test_a_log_is_added_to_and_not_for_everybody(tmp_path: Path, dropped: Count) -> None:
    path = tmp_path / "access.log"
    for _ in range(2):
        log = open_access_log(str(path), dropped)
        log.write(record())
        log.close()
    assert len(lines(path)) == 2
    assert path.stat().st_mode & 0o007 == 0


def test_a_closed_stdout_is_an_error_at_the_start(dropped: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor may be a client's by then."""
    monkeypatch.setattr(module, "sys", SimpleNamespace(stdout=None))
    with pytest.raises(OSError, match="stdout is closed"):
        open_access_log("-", dropped)


def test_off_is_off(dropped: Count) -> None:
    assert open_access_log("off", dropped) is None


def test_a_file_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path, dropped: Count) -> None:
    for path in (tmp_path, tmp_path / "none" / "access.log"):
        with pytest.raises(OSError, match="directory"):
            open_access_log(str(path), dropped)
