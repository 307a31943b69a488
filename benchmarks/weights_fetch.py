"""How fast weights come from a store on this machine, beside other downloaders, the disk alone and the line alone.

One process serves a folder of random files as a hub, as an S3 store and as a registry, by sendfile. Each program brings
all into an empty folder of the same disk, in turn; a run ends when all of it is on the disk, which headwater sees to
itself. Wall clock, CPU seconds of the program, and of the store meanwhile. `line` reads the same bytes over eight
connections and keeps none of them; `disk` writes as many, and has them on the disk.

    python -m benchmarks.weights_fetch FOLDER [--gib 2] [--rounds 3] [--line 2.5gbit] [--copies 10] [--only hf]

`--line` has it all happen in a network namespace of its own, whose loopback is as slow as that (as root, by tc).
`--copies`: each file is there under so many names, so that the store needs less room than what is fetched from it.
"""

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import ClassVar
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REGISTRY = "/v2/lab/model"
PART = 64 * 2**20
MIB = 2**20


def digests(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256, "md5": md5}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    files: ClassVar[list[dict[str, object]]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if "/tree/" in parts.path:  # as `hf` asks
            tree = [
                {
                    "type": "file",
                    "path": each["name"],
                    "size": each["size"],
                    "oid": COMMIT,
                    "lfs": {"oid": each["sha256"], "size": each["size"], "pointerSize": 130},
                }
                for each in self.files
            ]
            self.document(json.dumps(tree).encode(), "application/json")
        elif parts.path.startswith("/api/models/"):
            listed = [
                {
                    "rfilename": each["name"],
                    "size": each["size"],
                    "lfs": {"sha256": each["sha256"], "size": each["size"], "pointerSize": 130},
                }
                for each in self.files
            ]
            info = {"id": "lab/model", "modelId": "lab/model", "sha": COMMIT, "siblings": listed}
            self.document(json.dumps(info).encode(), "application/json")
        elif parts.path.startswith(f"{REGISTRY}/manifests/"):
            self.document(self.manifest(), "application/vnd.oci.image.manifest.v1+json")
        elif parts.path.startswith(f"{REGISTRY}/blobs/"):
            digest = parts.path.rpartition(":")[2]
            if digest == hashlib.sha256(b"{}").hexdigest():
                self.document(b"{}", "application/json")
            else:
                self.file(next(str(each["name"]) for each in self.files if each["sha256"] == digest))
        elif "list-type=2" in parts.query:
            self.document(self.listing().encode(), "application/xml")
        else:
            self.file(parts.path.rpartition("/")[2])

    def manifest(self) -> bytes:
        """As `oras push` makes it."""
        layers = [
            {
                "mediaType": "application/octet-stream",
                "digest": f"sha256:{each['sha256']}",
                "size": each["size"],
                "annotations": {"org.opencontainers.image.title": each["name"]},
            }
            for each in self.files
        ]
        empty = "application/vnd.oci.empty.v1+json"
        config = {"mediaType": empty, "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}", "size": 2}
        whole = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.unknown.artifact.v1",
            "config": config,
            "layers": layers,
        }
        return json.dumps(whole).encode()

    def listing(self) -> str:
        entries = "".join(
            f'<Contents><Key>model/{each["name"]}</Key><Size>{each["size"]}</Size><ETag>"{each["md5"]}"</ETag>'
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for each in self.files
        )
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return f'<ListBucketResult xmlns="{space}"><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>'

    def document(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def file(self, name: str) -> None:
        about = next(each for each in self.files if each["name"] == name)
        size = int(str(about["size"]))
        asked = self.headers.get("Range")
        first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1, size) if last else size
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{about["sha256" if "/resolve/" in self.path else "md5"]}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if self.command == "GET":
            with (self.folder / name).open("rb") as file:
                while start < stop and (
                    sent := os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)
                ):
                    start += sent

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path) -> None:
    Handler.folder = folder
    known: dict[int, dict[str, object]] = {}
    for path in sorted(folder.iterdir()):  # names of one file are read once
        about = known.setdefault(path.stat().st_ino, {}) or digests(path)
        known[path.stat().st_ino] = about
        Handler.files.append(about | {"name": path.name})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that have enough
    print(server.server_address[1], flush=True)
    server.serve_forever()


# What is compared


def programs(port: int, target: Path, home: Path) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    url = f"http://127.0.0.1:{port}"
    dropped = "proxy", "pythondontwritebytecode"  # compiled anew each time, a program takes a second to begin
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith(dropped)}
    environment |= {"PYTHONPYCACHEPREFIX": str(home / "compiled")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "AWS_ENDPOINT_URL": url}
    environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    ours = [sys.executable, "-m", "headwater", "fetch"]
    yield "headwater fetch hf://", [*ours, "hf://lab/model", str(target)], environment
    hub = shutil.which("hf", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hub:
        yield "hf download", [hub, "download", "lab/model", "--local-dir", str(target)], environment
    yield "headwater fetch s3://", [*ours, "s3://bucket/model", str(target)], environment
    for name, command in (
        ("aws s3 cp", ["aws", "s3", "cp", "--recursive", "--quiet", "s3://bucket/model", str(target)]),
        ("s5cmd cp", ["s5cmd", "--endpoint-url", url, "cp", "s3://bucket/model/*", f"{target}/"]),
    ):
        if shutil.which(command[0]):
            yield name, command, environment
    image = f"127.0.0.1:{port}/lab/model:latest"
    yield "headwater fetch oci://", [*ours, f"oci://{image}", str(target)], environment
    if shutil.which("oras"):
        yield "oras pull", ["oras", "pull", "--plain-http", "--output", str(target), image], environment


def cpu_of(process: int) -> float:
    """Seconds so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and CPU seconds of children that ended."""
    before, begun = os.times(), time.monotonic()
    work()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - begun, cpu


def fetch(command: list[str], environment: dict[str, str], target: Path, size: int) -> tuple[float, float]:
    def work() -> None:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for path in target.rglob("*"):
            sync(path)

    shutil.rmtree(target, ignore_errors=True)
    found = timed(work)
    came = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    assert came >= size, f"{command[0]}: {came} bytes came, not {size}"
    shutil.rmtree(target)
    return found


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def disk(target: Path, size: int) -> None:
    piece = os.urandom(MIB)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT)
    for _ in range(size // MIB):
        os.write(descriptor, piece)
    os.fsync(descriptor)
    os.close(descriptor)
    target.unlink()


def line(port: int, files: dict[str, int]) -> None:
    def read(part: tuple[str, int, int]) -> None:
        name, start, stop = part
        buffer = bytearray(MIB)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            asked = f"GET /lab/model/resolve/{COMMIT}/{name} HTTP/1.1\r\nRange: bytes={start}-{stop - 1}\r\n\r\n"
            connection.sendall(asked.encode())
            left = stop - start
            while left > 0:  # the head is a few hundred bytes of millions
                left -= connection.recv_into(buffer)

    parts = [(name, start, min(start + PART, size)) for name, size in files.items() for start in range(0, size, PART)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--line", metavar="RATE", help="as tc writes it")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--only", metavar="PROGRAM", default="", help="whose name has this in it")
    arguments = parser.parse_args()
    source, target = arguments.folder / "source", arguments.folder / "target"
    if arguments.serve:
        serve(source)
        return
    if arguments.line:
        limit(arguments.line)
    shutil.rmtree(target, ignore_errors=True)
    make(source, int(arguments.gib * 2**30), arguments.copies)
    files = {path.name: path.stat().st_size for path in source.iterdir()}
    command = [sys.executable, "-m", "benchmarks.weights_fetch", str(arguments.folder), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            compare(server.pid, port, files, target, arguments)
        finally:
            server.terminate()


def limit(rate: str) -> None:
    """Begin again where the loopback is one's own, and a slow one."""
    slow = f"ip link set lo up && tc qdisc add dev lo root tbf rate {rate} burst 2mb latency 20ms"
    given = [each for each in sys.argv[1:] if each not in ("--line", rate)]
    again = [sys.executable, "-m", "benchmarks.weights_fetch", *given]
    os.execvp("unshare", ["unshare", "--net", "sh", "-ec", f'{slow}; exec "$@"', "sh", *again])


def make(source: Path, size: int, copies: int) -> None:
    """Half of it in one file, the rest in four; or so many names of these."""
    source.mkdir(parents=True, exist_ok=True)
    for path in source.glob("copy-*"):  # of a run with more
        path.unlink()
    size //= copies
    parts = {"model-0.safetensors": size // 2} | {f"model-{number}.safetensors": size // 8 for number in range(1, 5)}
    for name, part in parts.items():
        path = source / name
        if not path.exists() or path.stat().st_size != part:
            with path.open("wb") as file:
                for _ in range(part // MIB):
                    file.write(os.urandom(MIB))
        for copy in range(1, copies):
            other = source / f"copy-{copy}-{name}"
            other.hardlink_to(path)


def compare(server: int, port: int, files: dict[str, int], target: Path, arguments: argparse.Namespace) -> None:
    size = sum(files.values())
    found: dict[str, list[tuple[float, float, float]]] = {}

    def note(name: str, run: Callable[[], tuple[float, float]]) -> None:
        before = cpu_of(server)
        seconds, cpu = run()
        found.setdefault(name, []).append((seconds, cpu, cpu_of(server) - before))
        print(f"{name}: {size / MIB / seconds:.0f} MiB/s", file=sys.stderr, flush=True)

    for _ in range(arguments.rounds):
        note("disk", lambda: timed(lambda: disk(target, size)))
        note("line", lambda: timed(lambda: line(port, files)))
        for name, command, environment in programs(port, target, arguments.folder / "home"):
            if arguments.only in name:
                note(name, partial(fetch, command, environment, target, size))
    print("| what | MiB/s, median | of all rounds | CPU s | of the store |\n|---|---|---|---|---|")
    for name, runs in found.items():
        rates = sorted((size / MIB / seconds for seconds, _, _ in runs), reverse=True)
        least = min(cpu for _, cpu, _ in runs), min(cpu for _, _, cpu in runs)
        shown = ", ".join(f"{rate:.0f}" for rate in rates)
        print(f"| {name} | {median(rates):.0f} | {shown} | {least[0]:.1f} | {least[1]:.1f} |")


if __name__ == "__main__":
    threading.stack_size(512 * 1024)
    main()
