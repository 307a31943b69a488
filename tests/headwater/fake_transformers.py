"""What `headwater up` takes for `transformers serve`, in the tests: quick to start, and as slow as a test wants it.

FAKE_FOLDER is where it talks with the test. It counts its lives in `lives`, has loaded the fraction of its weights that
`loaded` says, fails to start where `broken` is there, and holds a stream after its first chunk until `release` is.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(os.environ["FAKE_FOLDER"])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        loaded = float((FOLDER / "loaded").read_text())
        if self.path == "/health" and loaded < 1:
            self._send(503, {"status": "loading", "phase": "weights", "fraction": loaded})
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": sys.argv[2], "object": "model"}]})
        else:
            self._send(200, {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not body.get("stream"):
            self._send(200, {"choices": [{}], "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n')
        while not (FOLDER / "release").exists():
            time.sleep(0.02)
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


if (FOLDER / "broken").exists():
    sys.exit("the weights are not what they seem")
with (FOLDER / "lives").open("a") as lives:
    lives.write(f"{os.getpid()}\n")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
