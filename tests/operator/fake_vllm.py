"""A vLLM server over HTTP, as far as adapters go: it lists, loads and unloads them, and forgets them when restarted."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeVLLM:
    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.broken: set[str] = set()
        """Paths that it refuses to load."""
        self.silent: set[str] = set()
        """Paths that it says to have loaded, and has not."""
        self.slow: set[str] = set()
        """Paths that it loads only after the client has given up."""
        self.calls: list[tuple[str, str]] = []
        self.keys: set[str | None] = set()
        """The `authorization` that came with them."""
        self.admin_key: str | None = None
        """Without it nothing is changed. Of SGLang, not of vLLM, which is the same in all else that is here."""
        self.url = ""
        self.given_up = threading.Event()

    def restart(self) -> None:
        self.adapters.clear()

    def models(self) -> dict[str, Any]:
        cards = [{"id": "base", "object": "model", "root": "/models/base", "parent": None}]
        cards += [
            {"id": name, "object": "model", "root": path, "parent": "base"} for name, path in self.adapters.items()
        ]
        return {"object": "list", "data": cards}

    def post(self, path: str, body: dict[str, str], authorization: str | None = None) -> tuple[int, Any]:
        self.keys.add(authorization)
        if self.admin_key is not None and authorization != f"Bearer {self.admin_key}":
            return 401, {"error": "Unauthorized"}
        path = path if path.startswith("/v1/") else f"/v1{path}"  # SGLang's are at the root
        name = body["lora_name"]
        self.calls.append((path.rpartition("/")[2].partition("_")[0], name))
        if path == "/v1/unload_lora_adapter":
            if name not in self.adapters:
                return 404, _error(f"The lora adapter '{name}' cannot be found.", "NotFoundError")
            del self.adapters[name]
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        if path != "/v1/load_lora_adapter":
            return 404, {"detail": "Not Found"}
        source = body["lora_path"]
        if name in self.adapters:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if source in self.broken:
            return 404, _error(f"Loading lora {name} failed: No adapter found for {source}", "NotFoundError")
        if source in self.slow:
            self.given_up.wait(5)
        if source not in self.silent:
            self.adapters[name] = source
        return 200, f"Success: LoRA adapter '{name}' added successfully."


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": 400}}


@contextmanager
def fake_vllm() -> Iterator[FakeVLLM]:
    server = FakeVLLM()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, server.models())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*server.post(self.path, body, self.headers["authorization"]))

        def answer(self, status: int, content: Any) -> None:
            body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that have given up
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield server
        finally:
            server.given_up.set()
            http.shutdown()
