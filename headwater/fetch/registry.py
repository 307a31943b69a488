"""A container registry, as far as pulling goes: references, credentials, tokens, manifests."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from headwater.fetch.errors import FetchError
from headwater.fetch.promise import Digest
from headwater.fetch.transport import Asked, Document, Transport, parsed

_ACCEPT: Final = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_DOCKER_HUB: Final = ".".join(("docker", "io"))  # the repository names no registry
_HUB_HOST: Final = f"registry-1.{_DOCKER_HUB}"
_HUB_LOGINS: Final = (f"https://index.{_DOCKER_HUB}/v1/", f"index.{_DOCKER_HUB}", _DOCKER_HUB, _HUB_HOST)
_SCHEME: Final = re.compile(r"(?:^|,)\s*([\w-]+)\s+(?=[\w-]+\s*=)")
_FIELD: Final = re.compile(r'([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_REPOSITORY: Final = re.compile(r"[a-z0-9._/-]+")
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    host: str
    repository: str
    version: str
    """A tag, or a digest."""

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """`HOST/REPOSITORY[:TAG][@DIGEST]`. Raises FetchError."""
        host, _, rest = text.partition("/")
        named, at, digest = rest.partition("@")
        repository, _, tag = named.partition(":")
        if not host or not _REPOSITORY.fullmatch(repository) or ".." in repository:
            raise FetchError(f"oci://{text} is not of the form oci://REGISTRY/IMAGE:TAG, in small letters")
        if at and Digest.parse(digest) is None:
            raise FetchError(
                f"oci://{text}: after @ there must be sha256: and 64, or sha512: and 128, hexadecimal digits"
            )
        if tag and not _TAG.fullmatch(tag):
            raise FetchError(f"oci://{text}: {tag!r} cannot be a tag")
        if host == _DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        return cls(host, repository, digest or tag or "latest")

    @property
    def pin(self) -> Digest | None:
        return Digest.parse(self.version)

    @property
    def url(self) -> str:
        # As container tools do: a registry on this machine needs no certificate.
        local = self.host.partition(":")[0] in ("localhost", "127.0.0.1")
        host = _HUB_HOST if self.host == _DOCKER_HUB else self.host
        return f"{'http' if local else 'https'}://{host}/v2/{self.repository}"

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.repository}{'@' if self.pin else ':'}{self.version}"


@dataclass(frozen=True, slots=True)
class Login:
    basic: str | None = None
    """User and password, as basic authentication has them."""
    identity: str | None = None
    """A token that is given for tokens."""
    bearer: str | None = None


class Registry:
    """One repository of a registry; a Site. Calls raise FetchError and TransientError."""

    advice = "check the network"

    def __init__(self, transport: Transport, reference: Reference) -> None:
        self.name = str(reference)
        self.version = reference.version
        self._transport = transport
        self._reference = reference
        self._login = login(reference.host)
        self._authorization = f"Bearer {self._login.bearer}" if self._login.bearer else None

    def ask(self, key: str) -> Asked:
        headers = {"Authorization": self._authorization} if self._authorization else {}
        return Asked(f"{self._reference.url}/{key}", headers)

    async def manifest(self, version: str) -> tuple[dict[str, Any], Digest]:
        """And its digest, which is the one that was asked for, if one was."""
        content, document = await self._transport.fields(self, f"manifests/{version}", {"Accept": _ACCEPT})
        promised = Digest.parse(version) or Digest.parse(document.headers.get("docker-content-digest"))
        kind = promised.kind if promised else "sha256"
        came = hashlib.new(kind, document.body).hexdigest()
        if promised is not None and came != promised.value:
            raise FetchError(
                f"{self.name}: the manifest has the digest {kind}:{came}, and should have {promised.value}"
            )
        digest = Digest.parse(f"{kind}:{came}")
        assert digest is not None
        return content, digest

    async def admitted(self, refused: Document) -> bool:
        """Do what the registry asks for first."""
        if refused.status != 401:
            return False
        asked = challenges(refused.headers.getlist("www-authenticate"))
        bearer = next((fields for scheme, fields in asked if scheme == "bearer" and "realm" in fields), None)
        if bearer is not None:
            self._authorization = f"Bearer {await self._token(bearer)}"
            return True
        if any(scheme == "basic" for scheme, _ in asked) and self._login.basic:
            self._authorization = f"Basic {self._login.basic}"
            return True
        return False

    async def _token(self, asked: Mapping[str, str]) -> str:
        wanted = {name: asked[name] for name in ("service", "scope") if name in asked}
        if self._login.identity:
            grant = {"grant_type": "refresh_token", "client_id": "headwater", "refresh_token": self._login.identity}
            document = await self._transport.post(self, asked["realm"], wanted | grant)
            if document.status >= 400:
                raise self.refusal(document)
        else:
            realm = _Realm(self, asked["realm"], wanted, self._login.basic)
            document = await self._transport.document(realm, "", {})
        content = parsed(self.name, document)
        token = content.get("token") or content.get("access_token")
        if not isinstance(token, str):
            raise FetchError(f"{self.name}: the registry's token service gives no token")
        return token

    def refusal(self, refused: Document) -> FetchError:
        if refused.status in (401, 403):
            return FetchError(
                f"{self.name}: access denied ({refused.status}); give a Docker config.json by spec.model.secretRef "
                "(DOCKER_AUTH_CONFIG)"
            )
        if refused.status == 404:
            return FetchError(f"{self.name} does not exist")
        return FetchError(f"{self.name}: the registry answered {refused.status}")


class _Realm:
    """Where tokens are given; a Site of one key."""

    advice = "check the network"

    def __init__(self, registry: Registry, url: str, wanted: Mapping[str, str], basic: str | None) -> None:
        self.name = registry.name
        self._registry = registry
        self._asked = Asked(_with_query(url, wanted), {"Authorization": f"Basic {basic}"} if basic else {})

    def ask(self, key: str) -> Asked:
        return self._asked

    async def admitted(self, refused: Document) -> bool:
        return False

    def refusal(self, refused: Document) -> FetchError:
        return self._registry.refusal(refused)


def _with_query(url: str, wanted: Mapping[str, str]) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise FetchError(f"the registry sends for a token to {url!r}, which is no address") from None
    return parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | dict(wanted))).geturl()


def challenges(headers: list[str]) -> list[tuple[str, dict[str, str]]]:
    """Schemes and their fields; one header may have several, and there may be several headers."""
    found = []
    for header in headers:
        begins = [*_SCHEME.finditer(header)]
        ends = [begin.start() for begin in begins[1:]] + [len(header)]
        for begin, end in zip(begins, ends, strict=True):
            fields = {
                name.lower(): quoted or plain for name, quoted, plain in _FIELD.findall(header[begin.end() : end])
            }
            found.append((begin[1].lower(), fields))
    return found


def login(host: str) -> Login:
    """As `docker login` leaves it. Raises FetchError."""
    text = os.environ.get("DOCKER_AUTH_CONFIG")
    try:
        if text is None:
            file = Path(os.environ.get("DOCKER_CONFIG", "~/.docker")).expanduser() / "config.json"
            text = file.read_text() if file.is_file() else "{}"
        entries = json.loads(text).get("auths") or {}
        keys = (
            _HUB_LOGINS
            if host == _DOCKER_HUB
            else (host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/")
        )
        entry: dict[str, str] = next((entries[key] for key in keys if entries.get(key)), {})
        basic = entry.get("auth") or None
        if basic is None and "username" in entry:
            basic = base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
        return Login(basic, entry.get("identitytoken") or None, entry.get("registrytoken") or None)
    except (ValueError, AttributeError, KeyError, TypeError, OSError):
        raise FetchError("DOCKER_AUTH_CONFIG, or ~/.docker/config.json, is not a Docker config.json") from None
