"""A router that cannot start says why, in one sentence, and ends."""

import socket
import subprocess
import sys
from pathlib import Path


def route(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headwater", "route", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = route("--endpoint", "http://127.0.0.1:9", "--port", str(port))
    assert ended.returncode == 1
    assert f"headwater route: cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "another program listens there; choose another --port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_file_of_endpoints_is_named(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text("url: http://127.0.0.1:9")
    ended = route("--endpoints-file", str(file), "--port", "0")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"headwater route: {file}: must be a list of endpoints, each with at least a url"
    ]


def test_a_file_of_endpoints_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    ended = route("--endpoints-file", str(file), "--port", "0")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [f"headwater route: {file}: No such file or directory"]
