"""Where weights come from, over HTTP: a hub, an S3 store and a container registry, each as far as a fetch needs it.

`Store.trouble` says what happens to the next requests of a path: a status with headers, or how many bytes come before
the connection breaks.
"""

import hashlib
import io
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import urllib3

from headwater.fetch.client import Client
from headwater.fetch.manifest import MANIFEST

Answer = tuple[int, dict[str, str], bytes]

WEIGHTS = bytes(range(256)) * 4096
"""One MiB."""
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer/vocab.txt": b"a\nb\n"}


def names_in(folder: Path) -> dict[str, bytes]:
    """What was fetched; the manifest is held by tests of its own."""
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert there.pop(MANIFEST)
    return there


@dataclass
class Refuse:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Break:
    after: int
    """Bytes of the body."""


@dataclass
class Twist:
    """An answer that is not what it should be; without the Range that was asked for, if `whole`."""

    twist: Callable[[Answer], Answer] = lambda answer: answer
    whole: bool = False
    shift: int = 0
    """Bytes by which the range is another one than was asked for."""


Trouble = Refuse | Break | Twist


@dataclass
class Store:
    files: dict[str, bytes]
    trouble: dict[str, list[Trouble]] = field(default_factory=dict)
    """By the end of a path."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range."""
    authorizations: list[str | None] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    url: str = ""
    deaf: bool = False
    """To If-Range."""

    @property
    def host(self) -> str:
        return self.url.partition("://")[2]

    def ranges(self, end: str) -> list[str | None]:
        return [part for method, path, part in self.requests if method == "GET" and path.endswith(end)]

    def next_trouble(self, path: str) -> Trouble | None:
        for end, troubles in self.trouble.items():
            if path.endswith(end) and troubles:
                return troubles.pop(0)
        return None


Answering = Callable[[Store, str, str, Mapping[str, str]], Answer]


@contextmanager
def serving(store: Store, answering: Answering, tls: ssl.SSLContext | None = None) -> Iterator[Store]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer()

        def answer(self) -> None:
            status, headers, body, cut = respond(store, answering, self.command, self.path, self.headers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:cut])
                self.close_connection = cut is not None

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that have given up
        if tls is not None:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        store.url = f"{'https' if tls else 'http'}://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield store
        finally:
            http.shutdown()


class InProcess:
    """The same without sockets: a pool of urllib3's, as far as it is asked for."""

    def __init__(self, store: Store, answering: Answering) -> None:
        self._store = store
        self._answering = answering
        store.url = "http://127.0.0.1"

    def client(self) -> Client:
        return Client(lambda url: self)

    def urlopen(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        parts, asked = urlsplit(url), urllib3.HTTPHeaderDict(options["headers"])
        target = parts._replace(scheme="", netloc="").geturl()
        status, headers, body, cut = respond(self._store, self._answering, method, target, asked)
        coming: io.BytesIO = io.BytesIO(body) if cut is None or cut >= len(body) else Breaking(body[:cut])
        return urllib3.HTTPResponse(coming, headers, status, preload_content=False)


class Breaking(io.BytesIO):
    def read1(self, size: int | None = -1, /) -> bytes:
        data = super().read1(size)
        if not data:
            raise ConnectionResetError("the line broke")
        return data


def respond(
    store: Store, answering: Answering, command: str, target: str, asked: Mapping[str, str]
) -> tuple[int, dict[str, str], bytes, int | None]:
    """Status, headers, body, and after how much of that the line breaks."""
    parts = urlsplit(target)
    store.requests.append((command, parts.path, asked.get("Range")))
    store.queries.append(parts.query)
    store.authorizations.append(asked.get("Authorization"))
    trouble = None if command == "HEAD" else store.next_trouble(parts.path)
    if isinstance(trouble, Refuse):
        return trouble.status, {"Content-Length": "0", **trouble.headers}, b"", None
    answer = answering(store, command, target, asked)
    whole = isinstance(trouble, Twist) and trouble.whole
    shift = trouble.shift if isinstance(trouble, Twist) else 0
    only_if = None if store.deaf else asked.get("If-Range")
    status, headers, body = _part(answer, None if whole else asked.get("Range"), only_if, shift)
    if isinstance(trouble, Twist):
        status, headers, body = trouble.twist((status, headers, body))
    headers = {"Content-Length": str(len(body))} | headers
    return status, headers, body, trouble.after if isinstance(trouble, Break) else None


def _part(answer: Answer, asked: str | None, only_if: str | None, shift: int) -> Answer:
    status, headers, body = answer
    if status != 200 or not asked or not body or only_if not in (None, headers.get("ETag")):
        return answer
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start, end = int(first) + shift, min(int(last) + shift, len(body) - 1) if last else len(body) - 1
    if start >= len(body):
        return 416, headers | {"Content-Range": f"bytes */{len(body)}"}, b""
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
        siblings = [_sibling(name, content) for name, content in store.files.items()]
        info = {"id": repository, "modelId": repository, "sha": SHA, "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
    name = path.partition(f"/resolve/{SHA}/")[2]
    if name not in store.files:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    content = store.files[name]
    headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
    return 200, headers | ({"Content-Length": str(len(content))} if method == "HEAD" else {}), content


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    """As git has it, or LFS where it is large."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if len(content) < 1000:
        return {"rfilename": name, "size": len(content), "blobId": blob}
    lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {"rfilename": name, "size": len(content), "blobId": "0" * 40, "lfs": lfs}


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


def titled(name: str) -> dict[str, Any]:
    return {"annotations": {"org.opencontainers.image.title": name}}


def digest_of(content: bytes, kind: str = "sha256") -> str:
    return f"{kind}:{hashlib.new(kind, content).hexdigest()}"


@dataclass
class RegistryStore(Store):
    manifests: dict[str, bytes] = field(default_factory=dict)
    """By tag and by digest. `files` are blobs by digest."""
    challenge: str = 'Bearer realm="{url}/token",service="registry",scope="repository:team/model:pull"'
    user: str | None = None
    """Basic credentials that the token endpoint wants."""
    blobs_elsewhere: str | None = None
    """Where to send those that ask for a blob."""

    def push(self, tag: str, *layers: tuple[bytes, dict[str, Any]], kind: str = "sha256") -> str:
        """The digest of the manifest."""
        listed = []
        for content, extra in layers:
            digest = digest_of(content, kind)
            self.files[digest] = content
            listed.append({"mediaType": "application/octet-stream", "digest": digest, "size": len(content)} | extra)
        return self.put(tag, {"schemaVersion": 2, "layers": listed})

    def put(self, tag: str, manifest: object) -> str:
        content = json.dumps(manifest).encode()
        self.manifests[tag] = self.manifests[digest_of(content)] = content
        return digest_of(content)


def registry(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
    assert isinstance(store, RegistryStore)
    path = urlsplit(target).path
    if path == "/token":
        if store.user and headers.get("Authorization") != f"Basic {store.user}":
            return 401, {}, b"{}"
        return 200, {}, json.dumps({"token": "good"}).encode()
    if headers.get("Authorization") != "Bearer good":
        return 401, {"WWW-Authenticate": store.challenge.format(url=store.url)}, b""
    kind, _, name = path.removeprefix("/v2/team/model/").partition("/")
    if kind == "manifests" and name in store.manifests:
        return 200, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, store.manifests[name]
    if kind == "blobs" and name in store.files:
        if store.blobs_elsewhere:
            return 307, {"Location": f"{store.blobs_elsewhere}/{name}"}, b""
        return 200, {}, store.files[name]
    return 404, {}, b"{}"


def plain(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
    """Files by their names, and nothing else."""
    name = urlsplit(target).path.strip("/")
    return (200, {}, store.files[name]) if name in store.files else (404, {}, b"")
