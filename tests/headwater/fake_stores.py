"""Where weights come from, over HTTP: a hub, an S3 store and a container registry, each as far as a fetch needs it.

`Store.trouble` says what happens to the next requests of a path: a status with headers, or how many bytes come before
the connection breaks.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Refuse:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Break:
    after: int
    """Bytes of the body."""


@dataclass
class Store:
    files: dict[str, bytes]
    trouble: dict[str, list[Refuse | Break]] = field(default_factory=dict)
    """By the end of a path."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range."""
    authorizations: list[str | None] = field(default_factory=list)
    url: str = ""

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def ranges(self, end: str) -> list[str | None]:
        return [part for method, path, part in self.requests if method == "GET" and path.endswith(end)]

    def next_trouble(self, path: str) -> Refuse | Break | None:
        for end, troubles in self.trouble.items():
            if path.endswith(end) and troubles:
                return troubles.pop(0)
        return None


Answering = Callable[[Store, str, str, Mapping[str, str]], Answer]


@contextmanager
def serving(store: Store, answering: Answering) -> Iterator[Store]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = urlsplit(self.path).path
            store.requests.append((self.command, path, self.headers.get("Range")))
            store.authorizations.append(self.headers.get("Authorization"))
            trouble = store.next_trouble(path)
            if isinstance(trouble, Refuse):
                status, headers, body = trouble.status, dict(trouble.headers), b""
            else:
                status, headers, body = answering(store, self.command, self.path, self.headers)
                status, headers, body = _part(status, headers, body, self.headers.get("Range"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: trouble.after] if isinstance(trouble, Break) else body)
                self.close_connection = isinstance(trouble, Break)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that have given up
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        store.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield store
        finally:
            http.shutdown()


def _part(status: int, headers: dict[str, str], body: bytes, asked: str | None) -> Answer:
    if status != 200 or not asked or not body:
        return status, headers, body
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start, end = int(first), int(last) if last else len(body) - 1
    return 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(body)}"}, body[start : end + 1]


# A hub

SHA = "0123456789abcdef0123456789abcdef01234567"


def hub(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
    path = urlsplit(target).path
    if path.startswith("/api/models/"):
        repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        if repository != "owner/model":
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        if revision not in ("main", SHA):
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b""
        siblings = [{"rfilename": name, "size": len(content)} for name, content in store.files.items()]
        info = {"id": repository, "modelId": repository, "sha": SHA, "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
    name = path.partition(f"/resolve/{SHA}/")[2]
    if name not in store.files:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    content = store.files[name]
    headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
    return 200, headers | ({"Content-Length": str(len(content))} if method == "HEAD" else {}), content


# An S3 store


def s3(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    bucket, _, key = parts.path.strip("/").partition("/")
    if bucket != "bucket":
        return 404, {}, _s3_error("NoSuchBucket")
    if query.get("list-type") == "2":
        return 200, {"Content-Type": "application/xml"}, _listing(store, query)
    if key not in store.files:
        return 404, {}, _s3_error("NoSuchKey")
    etag = _etag(store.files[key])
    if headers.get("If-Match") not in (None, etag):
        return 412, {}, _s3_error("PreconditionFailed")
    return 200, {"ETag": etag}, store.files[key]


def _listing(store: Store, query: Mapping[str, str]) -> bytes:
    """Two a page, so that there are several."""
    keys = [key for key in sorted(store.files) if key.startswith(query.get("prefix", ""))]
    start = int(query.get("continuation-token", 0))
    more = start + 2 < len(keys)
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(store.files[key])}</Size><ETag>{_etag(store.files[key])}</ETag></Contents>"
        for key in keys[start : start + 2]
    )
    token = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if more else ""
    text = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}{contents}"
    return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{text}</ListBucketResult>'.encode()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _s3_error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


# A registry


@dataclass
class RegistryStore(Store):
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By tag or digest. `files` are blobs by digest."""
    user: str | None = None
    """Basic credentials that the token endpoint wants."""
    blobs_elsewhere: str | None = None
    """Where to send those that ask for a blob."""

    def push(self, tag: str, *layers: tuple[bytes, dict[str, Any]]) -> None:
        listed = []
        for content, extra in layers:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            self.files[digest] = content
            listed.append({"mediaType": "application/octet-stream", "digest": digest, "size": len(content)} | extra)
        self.manifests[tag] = {"schemaVersion": 2, "layers": listed}


def registry(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
    assert isinstance(store, RegistryStore)
    path = urlsplit(target).path
    if path == "/token":
        if store.user and headers.get("Authorization") != f"Basic {store.user}":
            return 401, {}, b"{}"
        return 200, {}, json.dumps({"token": "good"}).encode()
    if headers.get("Authorization") != "Bearer good":
        challenge = f'Bearer realm="{store.url}/token",service="registry",scope="repository:team/model:pull"'
        return 401, {"WWW-Authenticate": challenge}, b""
    kind, _, name = path.removeprefix("/v2/team/model/").partition("/")
    if kind == "manifests" and name in store.manifests:
        return (
            200,
            {"Content-Type": "application/vnd.oci.image.manifest.v1+json"},
            json.dumps(store.manifests[name]).encode(),
        )
    if kind == "blobs" and name in store.files:
        if store.blobs_elsewhere:
            return 307, {"Location": f"{store.blobs_elsewhere}/{name}"}, b""
        return 200, {}, store.files[name]
    return 404, {}, b"{}"


def plain(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
    """Files by their names, and nothing else."""
    name = urlsplit(target).path.strip("/")
    return (200, {}, store.files[name]) if name in store.files else (404, {}, b"")
