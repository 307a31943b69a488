"""`headwater route --check`: what would be served, or all that is wrong, without anything being started."""

import socket
from pathlib import Path

import pytest
import yaml

from headwater import cli
from headwater.keys import hashed

KEY = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "bind", lambda *_: pytest.fail("listens"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connects"))


def check(*flags: str) -> int:
    return cli.main(["route", "--check", *flags])


def write(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_what_would_be_served_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [
        {"name": "team-a", "hash": hashed(KEY), "models": ["m", "ns/*"], "requests_per_minute": 60},
        {"name": "old", "key": f"{KEY}2", "max_concurrent": 4, "cache_salt": "own", "disabled": True},
    ]
    status = check(
        "--port", "8080", "--endpoint", "http://a:1,name=a,backend=vllm,kv_events=tcp://a:2",
        "--endpoints-file", write(tmp_path / "endpoints.yaml", [{"url": "http://b:1"}]),
        "--kubernetes", "--kubernetes-namespaces", "x", "--kubernetes-namespaces", "y",
        "--api-keys", write(tmp_path / "keys.yaml", {"keys": keys}),
        "--admin-port", "9090", "--admin-host", "0.0.0.0",
        "--admin-keys", write(tmp_path / "admin.yaml", {"keys": [{"name": "ops", "key": KEY}]}),
        "--redis-url", "redis://user:secret@redis:6380", "--access-log", str(tmp_path / "access.log"),
    )  # fmt: skip
    said = capsys.readouterr()
    assert said.err == ""
    assert status == 0
    assert said.out.splitlines() == [
        "clients     http://127.0.0.1:8080",
        "keys        team-a: models m, ns/*; 60 a minute",
        "keys        old: models *; 4 at once; a cache salt of its own; disabled",
        "admin       http://0.0.0.0:9090; the API is for keys ops",
        "endpoints   a: http://a:1, vllm, KV events from tcp://a:2",
        "endpoints   b:1: http://b:1, headwater",
        "endpoints   those of the cluster, in x, y",
        "models      whatever the endpoints say that they serve",
        "policy      prefix for latency",
        "replicas    share through Redis at redis:6380",
        f"access log  {tmp_path / 'access.log'}",
    ]
    assert not (tmp_path / "access.log").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "keys        none: everybody who reaches the port may ask"),
        ((), "admin       no API; /metrics, /ready and /version are on the clients' port"),
        (("--admin-port", "0"), "http://127.0.0.1, a free port; the API is for all programs of this machine"),
        (("--admin-port", "9", "--admin-host", "::"), "http://[::]:9; the API is closed: it needs --admin-keys"),
        (("--admin-port", "9", "--admin-host", "localhost"), "the API is for all programs of this machine"),
        (("--access-log", "-"), "access log  stdout"),
        ((), "access log  off"),
    ],
)  # fmt: skip
def test_what_is_open_is_said(flags: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--endpoint", "http://a:1", *flags) == 0
    assert line in capsys.readouterr().out


def test_a_long_list_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"keys": [{"name": f"n{n}", "key": f"{KEY}{n}"} for n in range(1000)]}
    assert check("--endpoint", "http://a:1", "--api-keys", write(tmp_path / "keys.yaml", keys)) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("keys ")]
    assert len(listed) == 21
    assert listed[-1] == "keys        and 980 more"


def test_everything_that_is_wrong_is_said_in_a_sentence_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.yaml").write_text("")
    status = check(
        "--port", "9090", "--admin-port", "9090",
        "--endpoint", "ftp://a", "--api-keys", str(tmp_path / "empty.yaml"), "--admin-keys", str(tmp_path / "none"),
        "--tokenizer", "m", "--redis-url", "http://:secret@x", "--access-log", str(tmp_path),
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 2
    assert "secret" not in said.err
    wrong = said.err.splitlines()
    assert all(line.startswith("headwater route: ") for line in wrong)
    assert [line.removeprefix("headwater route: ").partition("found")[0] for line in wrong] == [
        "--admin-port: 9090 is the clients' port",
        f"--api-keys: {tmp_path}/empty.yaml: is empty; it must have a list `keys`",
        f"--admin-keys: {tmp_path}/none: No such file or directory",
        "endpoint: url must be http://HOST[:PORT][/PATH] or https://..., ",
        "--tokenizer: must be MODEL=FOLDER, ",
        "--redis-url: must be redis://[[USER]:PASSWORD@]HOST[:PORT], or rediss:// for TLS, with %XX for characters "
        "that mean something in a URL",
        f"--access-log: {tmp_path} cannot be written",
    ]


def test_a_router_that_has_nothing_to_do_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--admin-keys", "x") == 2
    said = capsys.readouterr().err
    assert "there is nothing to route to" in said
    assert "--admin-keys: there is no admin API without --admin-port" in said
