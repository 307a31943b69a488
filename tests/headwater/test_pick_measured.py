"""`headwater pick --measure`: speeds that were measured, of a running server and from bench's file."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from headwater.cli import main
from headwater.pick import pick
from headwater.pick.measured import Measured
from headwater.pick.workload import workload

FAST = Measured(
    model="m",
    concurrency=64,
    prompt_tokens=1000,
    output_tokens=250,
    cached_share=0,
    output_tokens_per_s=5000,
    ttft_p50=90,
    tpot_p50=11,
)
WORK = {"model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "h100", "concurrency": 64}


class Server(BaseHTTPRequestHandler):
    """One answer for all, of two tokens for a prompt of 900, half of which it had."""

    status = 200

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "served"}]}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        usage = {"prompt_tokens": 900, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 450}}
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": word}}]} for word in "ab"]
        events.append({"choices": [], "usage": usage})
        self._send("".join(f"data: {json.dumps(event)}\n\n" for event in events), self.status)

    def _send(self, body: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


def picked(*flags: str) -> list[str]:
    return ["pick", "--model", "Llama-3.1-8B", "--concurrency", "4", *flags]


def test_a_running_server_is_asked_with_the_load_of_the_workload(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(picked("--measure", url, "--json")) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert (measured["model"], measured["concurrency"]) == ("served", 4)
    assert (measured["prompt_tokens"], measured["output_tokens"], measured["cached_share"]) == (900, 2, 0.5)
    assert measured["output_tokens_per_s"] > 0


def test_what_bench_printed_counts_as_well_as_a_server(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", url, "--requests", "8", "--concurrency", "4", "--json"]) == 0
    file = tmp_path / "bench.json"
    file.write_text(capsys.readouterr().out)
    assert main(picked("--measure", str(file))) == 0
    shown = capsys.readouterr().out
    assert "Speeds are those measured of served with 4 requests at once, 900 + 2 tokens each" in " ".join(shown.split())


def test_the_same_load_gets_what_was_measured() -> None:
    (part,) = pick(workload(WORK, measured=FAST)).parts
    said = dict(part.arithmetic())
    assert said["tokens"] == "5,000 to 5,000 a second from 1 x 1"
    assert said["latency"] == "first token 90 to 90 ms, each further one 11.0 to 11.0 ms"


def test_another_load_is_less_sure_and_follows_the_roofline() -> None:
    (half,) = pick(workload(WORK | {"concurrency": 32}, measured=FAST)).parts
    low, high = (
        float(each.replace(",", "")) for each in dict(half.arithmetic())["tokens"].split(" a ")[0].split(" to ")
    )
    assert 2500 < (low * high) ** 0.5 < 5000
    assert 1 < high / low <= 1.5**2


def test_replicas_follow_from_what_was_measured() -> None:
    slow = FAST.model_copy(update={"output_tokens_per_s": 500})
    many, few = (pick(workload(WORK | {"rate": 20, "gpus": 64}, measured=each)).parts[0].plan for each in (slow, FAST))
    assert many.replicas >= 5 * few.replicas


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "can't decode"),
        (b"{}", "is nothing that `headwater bench --json` prints: model: "),
        (b'{"model": "m", "concurrency": 0}', "is nothing that `headwater bench --json` prints: concurrency: "),
        (b"no", "is nothing that `headwater bench --json` prints: "),
    ],
)
def test_a_file_of_something_else_is_told(
    written: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    if written is not None:
        file.write_bytes(written)
    assert main(picked("--measure", str(file))) == 2
    said = capsys.readouterr().err
    assert f"--measure: {file}: {message}"[:60] in said
    assert said.count("\n") == 1


def test_a_server_that_refuses_all_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Server, "status", 503)
    assert main(picked("--measure", url)) == 1
    assert f"--measure: {url} answered no request: 503: " in capsys.readouterr().err


def test_a_server_that_is_too_slow_is_left_after_a_while(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("headwater.cli.pick._LONGEST", 0.0)
    assert main(picked("--measure", url)) == 1
    assert "answered no request: nothing within 0 s" in capsys.readouterr().err
