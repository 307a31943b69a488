"""`headwater status`: what is told of ModelDeployments, by a stand-in of the API server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from headwater.cli import main

GOOD = {
    "metadata": {"name": "good", "namespace": "a"},
    "spec": {"model": {"source": "hf://o/n"}, "replicas": 2},
    "status": {
        "backend": "vllm",
        "phase": "Ready",
        "readyReplicas": 2,
        "url": "http://g/v1",
        "conditions": [{"type": "Ready", "status": "True", "message": "all is well"}],
    },
}
BAD = {
    "metadata": {"name": "bad", "namespace": "b"},
    "spec": {"model": {"source": "random:tiny"}},
    "status": {
        "phase": "Failed",
        "conditions": [
            {"type": "Ready", "status": "False", "message": "no replica is ready"},
            {"type": "Degraded", "status": "True", "message": "the image is not found; set spec.backend.image"},
        ],
    },
}
NEW = {"metadata": {"name": "new", "namespace": "b"}, "spec": {"model": {"source": "random:tiny"}}}


@pytest.fixture
def server(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """By path, what it answers."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            body = json.dumps({"items": found}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        named = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{http.server_port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
        config = {"clusters": [named], "contexts": [context], "users": [{"name": "c", "user": {}}]}
        (tmp_path / "config").write_text(yaml.safe_dump(config | {"current-context": "c"}))
        monkeypatch.setattr(
            "kubernetes_asyncio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config")
        )
        yield answers
        http.shutdown()


PATH = "/apis/headwater.dev/v1alpha1"


def test_each_is_told_with_what_is_not_as_wanted(server: dict[str, Any], capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    server[f"{PATH}/modeldeployments"] = [BAD, GOOD, NEW]
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [["a", "good", "Ready", "2/2"], ["b", "bad", "Failed", "0"]]
    assert "not seen by an operator" in lines[3]
    assert lines[4:] == [
        "b/bad: not ready: no replica is ready",
        "b/bad: degraded: the image is not found; set spec.backend.image",
    ]


def test_in_a_file_each_is_a_line_however_long_its_names_are(server: dict[str, Any], capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    metadata = {"name": "n" * 63, "namespace": "s" * 63}
    server[f"{PATH}/modeldeployments"] = [GOOD | {"metadata": metadata}]
    assert main(["status"]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == ["s" * 63, "n" * 63, "Ready", "2/2", "vllm", "hf://o/n", "http://g/v1"]


def test_what_is_on_its_way_is_told_once(server: dict[str, Any], capsys) -> None:
    conditions = [
        {"type": "Ready", "status": "False", "message": "0 of 1 replicas are ready"},
        {"type": "Progressing", "status": "True", "message": "replicas are starting"},
    ]
    server[f"{PATH}/modeldeployments"] = [GOOD | {"status": {"phase": "Progressing", "conditions": conditions}}]
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["a/good: progressing: replicas are starting"]


def test_programs_get_the_same_as_json(server: dict[str, Any], capsys) -> None:
    server[f"{PATH}/namespaces/a/modeldeployments"] = [GOOD]
    assert main(["status", "--namespace", "a", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["name"], told["serving"], told["wanted"], told["reasons"]) == ("good", 2, 2, [])


def test_a_cluster_without_the_crd_is_said_to_be_one(server: dict[str, Any], capsys) -> None:
    assert main(["status"]) == 1
    assert "Headwater's CRD is not installed" in capsys.readouterr().err


def test_no_cluster_is_one_sentence(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("kubernetes_asyncio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    assert main(["status"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("headwater status: there is no cluster to ask: ") and said.count("\n") == 1
