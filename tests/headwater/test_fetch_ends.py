"""A fetch ends, and at once where there is nothing to wait for; it says what to do, and never as a traceback."""

import asyncio
import base64
import io
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import trustme
import urllib3
from rich.console import Console

from headwater.fetch import fetch
from headwater.fetch.client import may_know
from headwater.fetch.errors import FetchError
from headwater.fetch.progress import Watch
from tests.headwater.fake_stores import (
    FILES,
    WEIGHTS,
    Answer,
    Break,
    Refuse,
    Store,
    Twist,
    hub,
    names_in,
    plain,
    s3,
    serving,
)


def test_lines_that_break_after_some_progress_end_nothing(the_hub: Store, tmp_path: Path, waits: list[float]) -> None:
    the_hub.trouble = {"model.safetensors": [Break(20_000)] * 30}
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    assert len(waits) == 30 and max(waits) < 1.3, "it begins with a second each time"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
@pytest.mark.parametrize("source", ["hf://owner/model", "s3://bucket/llm/base"])
def test_a_refusal_ends_it_at_once(
    the_hub: Store, the_store: Store, tmp_path: Path, waits: list[float], status: int, source: str
) -> None:
    for store in (the_hub, the_store):
        store.trouble = {"model.safetensors": [Refuse(status)] * 100}
    with pytest.raises(FetchError, match=str(status) if status not in (401, 403, 404) else "HF_TOKEN|AWS_"):
        fetch(source, tmp_path / "m")
    assert not waits


def half(answer: Answer) -> Answer:
    """Of an answer that never ends: the line stays."""
    status, headers, body = answer
    return status, headers | {"Content-Length": str(len(body))}, body[: len(body) // 2]


@pytest.mark.parametrize("stage", ["before it answers", "in the middle"])
def test_a_refusal_of_one_file_does_not_wait_for_the_others(
    stage: str, the_hub: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.fetch.client.TIMEOUT", None)
    over = threading.Event()

    def stalled(answer: Answer) -> Answer:
        over.wait()
        return answer

    the_hub.trouble = {
        "model.safetensors": [Twist(half if stage == "in the middle" else stalled)],
        "vocab.txt": [Refuse(403)],
    }
    try:
        with pytest.raises(FetchError, match="HF_TOKEN"):
            fetch("hf://owner/model", tmp_path / "m")
    finally:
        over.set()


def test_a_line_on_which_nothing_comes_is_given_up(
    the_hub: Store, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.fetch.client.TIMEOUT", urllib3.Timeout(read=0.2))
    the_hub.trouble = {"model.safetensors": [Twist(half)]}
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    assert the_hub.ranges("model.safetensors") == [None, f"bytes={len(WEIGHTS) // 2}-"]
    assert len(waits) == 1


def test_a_file_of_another_size_than_was_listed_ends_it_soon(the_hub: Store, tmp_path: Path) -> None:
    the_hub.trouble = {"model.safetensors": [Twist(lambda _: (200, {}, b"<html>log in</html>"))] * 100}
    with pytest.raises(FetchError, match="has 19 bytes, and should have 1048576, each time anew"):
        fetch("hf://owner/model", tmp_path / "m")
    assert len(the_hub.ranges("model.safetensors")) == 3


def test_a_busy_store_is_asked_by_few(the_hub: Store, tmp_path: Path, waits: list[float]) -> None:
    the_hub.files = {f"{number}.json": b"%d" % number for number in range(100)}
    the_hub.trouble = {".json": [Refuse(429)] * 1000}
    with pytest.raises(FetchError, match=r"answered 429 \(after 8 attempts\)"):
        fetch("hf://owner/model", tmp_path / "m")
    assert len(the_hub.requests) < 30


# Certificates


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def test_a_certificate_of_ones_own_is_one_setting_for_all(
    authority: trustme.CA, tmp_path: Path, alone: None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with (
        serving(Store(dict(FILES)), hub, tls) as of_hub,
        serving(Store({"llm/config.json": b"{}"}), s3, tls) as of_s3,
    ):
        monkeypatch.setenv("HF_ENDPOINT", of_hub.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", of_s3.url)
        for source in ("hf://owner/model", "s3://bucket/llm"):
            with pytest.raises(FetchError, match=r"certificate is not trusted.*SSL_CERT_FILE names a file"):
                fetch(source, tmp_path / "m")
        assert not waits
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        fetch("hf://owner/model", tmp_path / "m")
        fetch("s3://bucket/llm", tmp_path / "n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(FetchError, match="SSL_CERT_FILE"):
        fetch("hf://owner/model", tmp_path / "o")


def test_a_proxy_is_asked_for_all(the_hub: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", the_hub.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_who_asks_no_proxy_is_settled_for_each_server_anew(
    tmp_path: Path, alone: None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is asked by the proxy, and what it sends to without."""
    files = {"model.safetensors": WEIGHTS}
    with serving(Store(files), plain) as near, serving(Store(files), hub) as proxy:
        moved = 302, {"Location": f"{near.url}/model.safetensors"}, b""
        proxy.trouble = {"model.safetensors": [Twist(lambda _: moved)]}
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "other.example,127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
        fetch("hf://owner/model", tmp_path / "m")
        assert near.ranges("model.safetensors") == [None]
        assert len(proxy.requests) == 2
    assert names_in(tmp_path / "m") == files


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (407, 1), (503, 8)])
def test_a_proxy_that_refuses_is_named(
    status: int, tries: int, tmp_path: Path, alone: None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(listening: socket.socket) -> None:
        for _ in range(tries):
            line, _ = listening.accept()
            with line:
                asked.append(line.recv(9000).decode())
                line.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse, args=(listening,), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"user:p%40ss@127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
        with pytest.raises(FetchError, match="HTTPS_PROXY and NO_PROXY" if tries == 1 else f"{status}.*after 8"):
            fetch("hf://owner/model", tmp_path / "m")
    assert len(asked) == tries and len(waits) == tries - 1
    assert asked[0].startswith("CONNECT hub.example:443")
    assert base64.b64encode(b"user:p@ss").decode() in asked[0]


def test_a_proxy_variable_that_is_no_address_is_one_sentence(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "ftp://proxy")
    with pytest.raises(FetchError, match="the variable of a proxy, cannot be used"):
        fetch("hf://owner/model", tmp_path / "m")


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HF_ENDPOINT"])
def test_what_cannot_be_sent_is_said_without_the_token(
    variable: str, the_hub: Store, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, {"HF_TOKEN": "secret\n", "HF_ENDPOINT": "http://127.0.0.1:x"}[variable])
    with pytest.raises(FetchError) as told:
        fetch("hf://owner/model", tmp_path / "m")
    assert "secret" not in str(told.value) and not waits


def test_a_token_goes_to_the_hub_alone(the_hub: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "good")
    with serving(Store({"moved": WEIGHTS}), plain) as elsewhere:
        the_hub.trouble = {"model.safetensors": [Twist(lambda _: (302, {"Location": f"{elsewhere.url}/moved"}, b""))]}
        fetch("hf://owner/model", tmp_path / "m")
        assert elsewhere.authorizations == [None]
    assert set(the_hub.authorizations) == {"Bearer good"}


@pytest.mark.parametrize(
    ("to", "known"),
    [
        ("http://a/y", True),
        ("http://a:80/", True),
        ("https://a/", True),
        ("https://a:8443/", False),
        ("http://a:81/", False),
        ("http://b/", False),
        ("ftp://a/", False),
    ],
)
def test_what_is_for_one_server_is_for_it_also_in_secret(to: str, known: bool) -> None:
    assert may_know(to, "http://a/x") is known
    assert not may_know("http://a/", "https://a/x"), "but never back into the open"


# S3


def test_an_object_in_an_archive_is_not_an_access_denied(
    tmp_path: Path, alone: None, waits: list[float], monkeypatch: pytest.MonkeyPatch, the_store: Store
) -> None:
    frozen = b"<Error><Code>InvalidObjectState</Code></Error>"
    the_store.trouble = {"config.json": [Twist(lambda _: (403, {}, frozen))]}
    with pytest.raises(FetchError, match=r"is in an archive \(Glacier\): restore it"):
        fetch("s3://bucket/llm/base", tmp_path / "m")

    def listed(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        status, headed, body = s3(store, method, target, headers)
        return status, headed, body.replace(b"</ETag>", b"</ETag><StorageClass>DEEP_ARCHIVE</StorageClass>")

    with serving(Store({"llm/config.json": b"{}"}), listed) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        with pytest.raises(FetchError, match=r"config.json is in an archive \(Glacier\)"):
            fetch("s3://bucket/llm", tmp_path / "m")
    assert not waits


@pytest.mark.parametrize("status", [301, 400])
def test_a_bucket_of_another_region_is_found(
    status: int, tmp_path: Path, alone: None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answering(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        if "eu-central-1" in headers.get("Authorization", "") + target:
            return s3(store, method, target, headers)
        code = b"PermanentRedirect" if status == 301 else b"AuthorizationHeaderMalformed"
        error = b"<Error><Code>%s</Code><Region>eu-central-1</Region></Error>" % code
        return status, {"x-amz-bucket-region": "eu-central-1"}, error

    with serving(Store({"llm/config.json": b"{}", "llm/a": WEIGHTS}), answering) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        fetch("s3://bucket/llm", tmp_path / "m")
    assert names_in(tmp_path / "m") == {"config.json": b"{}", "a": WEIGHTS}


# What is left on the disk


def test_what_is_fetched_in_vain_is_gone_with_the_next_state(the_hub: Store, tmp_path: Path) -> None:
    the_hub.trouble = {"model.safetensors": [Break(500_000), Refuse(404)]}
    with pytest.raises(FetchError):
        fetch("hf://owner/model", tmp_path / "m")
    the_hub.files = {"config.json": b"[]", "model.safetensors": WEIGHTS[::-1], "new/a": b"1"}
    the_hub.trouble = {"new/a": [Refuse(404)]}
    with pytest.raises(FetchError):
        fetch("hf://owner/model", tmp_path / "m")
    left = [path for path in (tmp_path / "m.partial").rglob("*") if path.is_file() and path.name != "records"]
    assert sum(path.stat().st_size for path in left) <= len(WEIGHTS) + 3, "only of the present plan"
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == the_hub.files


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a//b")])
def test_names_that_cannot_be_there_together_are_told(the_hub: Store, tmp_path: Path, names: tuple[str, str]) -> None:
    the_hub.files = dict.fromkeys(names, b"1")
    with pytest.raises(FetchError, match="the source has"):
        fetch("hf://owner/model", tmp_path / "m")


# Progress


def test_progress_has_a_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("headwater.fetch.progress.time.monotonic", lambda: now)
    watch = Watch(1000)
    watch.found(400)
    watch.came(200)
    watch.came(-100)
    now = 110.0
    assert watch.figures() == {
        "bytes": 1000,
        "there": 500,
        "percent": 50,
        "bytes_per_second": 10,
        "seconds_left": 50,
    }


async def test_progress_is_told_to_whoever_asks() -> None:
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    watch = Watch(1000, Console(file=io.StringIO()), port)
    async with watch.shown():
        watch.came(500)
        async with httpx.AsyncClient(trust_env=False) as client:
            answers = [await client.get(f"http://127.0.0.1:{port}/any") for _ in range(2)]
    assert [answer.json()["percent"] for answer in answers] == [50, 50]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_keeps_nobody_from_fetching() -> None:
    with socket.create_server(("", 0)) as taken:
        async with Watch(1000, Console(file=io.StringIO()), taken.getsockname()[1]).shown():
            pass


def test_a_bar_is_drawn_on_a_terminal_and_lines_are_written_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    async def shown(terminal: bool) -> str:
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        watch = Watch(2**30, console)
        async with watch.shown():
            watch.came(2**29)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    assert "0.5/1.1 GB" in asyncio.run(shown(True))
    assert asyncio.run(shown(False)) == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_at_once(the_hub: Store, tmp_path: Path, number: int) -> None:
    """Whatever the store does: this one never ends its answer."""

    the_hub.trouble = {"model.safetensors": [Twist(half)] * 10}
    command = [sys.executable, "-m", "headwater", "fetch", "hf://owner/model", str(tmp_path / "m")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("fetching" in line for line in process.stderr), "it has begun"
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert (tmp_path / "m.partial").is_dir() and not (tmp_path / "m").exists()
