"""A container registry, as far as pulling goes: references, tokens, manifests, blobs."""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from headwater.fetch.errors import FetchError, TransientError
from headwater.fetch.patience import retry_after, transient

_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')


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
        named, _, digest = rest.partition("@")
        repository, _, tag = named.partition(":")
        if not host or not repository:
            raise FetchError(f"oci://{text} is not of the form oci://REGISTRY/IMAGE:TAG")
        return cls(host, repository, digest or tag or "latest")

    @property
    def url(self) -> str:
        # As container tools do: a registry on this machine needs no certificate.
        local = self.host.partition(":")[0] in ("localhost", "127.0.0.1")
        return f"{'http' if local else 'https'}://{self.host}/v2/{self.repository}"

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.repository}{'@' if ':' in self.version else ':'}{self.version}"


class Registry:
    """One repository of a registry. Calls raise FetchError and TransientError."""

    def __init__(self, client: httpx.Client, reference: Reference) -> None:
        self._client = client
        self._reference = reference
        self._basic = credentials(reference.host)
        self._authorization: str | None = None

    def manifest(self, version: str) -> dict[str, Any]:
        with self._get(f"manifests/{version}", {"Accept": ", ".join(_MANIFESTS)}) as answer:
            try:
                content = json.loads(answer.read())
            except ValueError:
                content = None
        if not isinstance(content, dict):
            raise FetchError(f"{self._reference} has no manifest that can be read")
        return content

    def blob(self, digest: str, start: int) -> Iterator[bytes]:
        """Its bytes from `start` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._get(f"blobs/{digest}", headers) as answer:
            skip = start if answer.status_code == 200 else 0  # it gives all of it whatever it is asked
            for chunk in answer.iter_raw():
                yield chunk[skip:]
                skip = max(skip - len(chunk), 0)

    @contextmanager
    def _get(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        url = f"{self._reference.url}/{path}"
        try:
            for last in (False, True):
                given = {"Authorization": self._authorization} if self._authorization else {}
                with self._client.stream("GET", url, headers={**headers, **given}, follow_redirects=True) as answer:
                    if answer.status_code == 401 and not last:
                        self._authorization = self._authorize(answer.headers.get("www-authenticate", ""))
                        continue
                    self._check(answer)
                    yield answer
                    return
        except httpx.TransportError as error:
            message = f"{self._reference}: the registry cannot be reached: {error or type(error).__name__}"
            raise TransientError(message) from None

    def _authorize(self, challenge: str) -> str:
        """What to send, by what the registry asks for."""
        kind, fields = challenge.partition(" ")[0].lower(), dict(_CHALLENGE.findall(challenge))
        if kind == "basic" and self._basic:
            return f"Basic {self._basic}"
        if kind != "bearer" or "realm" not in fields:
            raise self._denied(401)
        asked = {name: fields[name] for name in ("service", "scope") if name in fields}
        headers = {"Authorization": f"Basic {self._basic}"} if self._basic else {}
        answer = self._client.get(fields["realm"], params=asked, headers=headers)
        self._check(answer)
        content = answer.json()
        return f"Bearer {content.get('token') or content.get('access_token')}"

    def _check(self, answer: httpx.Response) -> None:
        status = answer.status_code
        if answer.is_success:
            return
        if transient(status):
            after = retry_after(answer.headers.get("retry-after"))
            raise TransientError(f"{self._reference}: the registry answered {status}", after)
        if status in (401, 403):
            raise self._denied(status)
        if status == 404:
            raise FetchError(f"{self._reference} does not exist")
        raise FetchError(f"{self._reference}: the registry answered {status}")

    def _denied(self, status: int) -> FetchError:
        return FetchError(
            f"{self._reference}: access denied ({status}); give a Docker config.json by spec.model.secretRef "
            "(DOCKER_AUTH_CONFIG)"
        )


def credentials(host: str) -> str | None:
    """User and password for a registry, in the form of basic authentication, as `docker login` leaves them."""
    text = os.environ.get("DOCKER_AUTH_CONFIG")
    if text is None:
        file = Path(os.environ.get("DOCKER_CONFIG", "~/.docker")).expanduser() / "config.json"
        text = file.read_text() if file.is_file() else "{}"
    try:
        entries = json.loads(text).get("auths", {})
        entry = entries.get(host) or entries.get(f"https://{host}") or {}
        if "auth" in entry:
            return str(entry["auth"])
        if "username" in entry:
            return base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
    except (ValueError, AttributeError, KeyError):
        raise FetchError("DOCKER_AUTH_CONFIG, or ~/.docker/config.json, is not a Docker config.json") from None
    return None
