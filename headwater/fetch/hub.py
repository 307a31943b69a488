"""hf://OWNER/NAME[/PATH]: a repository on the Hugging Face hub, or on a mirror that HF_ENDPOINT names.

The hub says of each file its SHA-256 or, where git keeps it itself, its git blob id. Files come by HTTP, also those of
the Xet store, which the hub puts together for those that ask so.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from headwater.extras import missing
from headwater.fetch.choice import below
from headwater.fetch.download import File
from headwater.fetch.errors import FetchError
from headwater.fetch.promise import Digest, Kind, Promise
from headwater.fetch.source import Asking, Listing
from headwater.fetch.transport import Asked, Document, Remote

_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SHA1: Final = re.compile(r"[0-9a-f]{40}")


class _Hub:
    advice = "check the network and HF_ENDPOINT"

    def __init__(self, repository: str, revision: str) -> None:
        self.name = f"hf://{repository}"
        self._revision = revision
        self._endpoint, self._token = _known()

    def ask(self, key: str) -> Asked:
        return Asked(f"{self._endpoint}/{key}", {"Authorization": f"Bearer {self._token}"} if self._token else {})

    async def admitted(self, refused: Document) -> bool:
        return False

    def refusal(self, refused: Document) -> FetchError:
        match refused.headers.get("x-error-code"), refused.status:
            case "GatedRepo", _:
                return FetchError(
                    f"{self.name} is gated: accept its terms on the hub, and give a token by spec.model.secretRef "
                    "(HF_TOKEN)"
                )
            case "RevisionNotFound", _:
                return FetchError(f"{self.name} has no revision {self._revision!r}")
            case ("RepoNotFound", _) | (_, 401 | 404):
                return FetchError(
                    f"{self.name} does not exist, or is private and needs a token by spec.model.secretRef (HF_TOKEN)"
                )
            case _, 403:
                said = refused.headers.get("x-error-message") or "access denied"
                return FetchError(f"{self.name}: {said} (403); give a token by spec.model.secretRef (HF_TOKEN)")
        said = refused.headers.get("x-error-message") or "HF_ENDPOINT says where it is"
        return FetchError(f"the hub answered {refused.status} for {self.name}: {said}")


async def list_files(source: str, revision: str, asking: Asking) -> Listing:
    owner, _, rest = source.removeprefix("hf://").partition("/")
    name, _, path = rest.partition("/")
    repository = f"{owner}/{name}"
    if not _NAME.fullmatch(repository):
        raise FetchError(f"hf://{repository} is not of the form hf://OWNER/NAME")
    hub = _Hub(repository, revision)
    # A branch may move while it is fetched: everything is taken from the commit that it is now.
    key = f"api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    info, _ = await asking.lines.patiently(lambda: asking.transport.fields(hub, key, {}))
    promises, commit = _promises(hub.name, info)
    wanted = below(sorted(promises), path.strip("/"))
    names = asking.wish.choose(list(wanted.values()))
    if not names:
        raise FetchError(f"{source} at {revision} has no files" + (" that are wanted" if wanted else ""))
    files = [
        File(short, promises[whole], Remote(asking.transport, hub, _file_key(repository, commit or revision, whole)))
        for whole, short in wanted.items()
        if short in names
    ]
    return Listing(commit, files, [short for short in wanted.values() if short not in names])


def _file_key(repository: str, commit: str, name: str) -> str:
    return f"{repository}/resolve/{quote(commit, safe='')}/{quote(name)}"


def _promises(shown: str, info: Mapping[str, Any]) -> tuple[dict[str, Promise], str]:
    """By name, and the commit. Mirrors may say less than the hub."""
    commit = info.get("sha")
    commit = commit if isinstance(commit, str) and _SHA1.fullmatch(commit) else ""
    files = info.get("siblings")
    if not isinstance(files, list) or not all(isinstance(each, dict) and "rfilename" in each for each in files):
        raise FetchError(f"{shown}: the answer lists no files; HF_ENDPOINT says which hub is asked")
    return {str(each["rfilename"]): _promise(each, commit) for each in files}, commit


def _promise(file: Mapping[str, Any], commit: str) -> Promise:
    large = file.get("lfs")
    if isinstance(large, dict):
        return Promise(_size(large) or _size(file), Digest.parse(f"sha256:{large.get('sha256')}"), commit)
    blob, size = file.get("blobId"), _size(file)
    git = isinstance(blob, str) and _SHA1.fullmatch(blob) and size is not None  # the size is part of what is hashed
    return Promise(size, Digest(Kind.GIT, str(blob)) if git else None, commit)


def _size(file: Mapping[str, Any]) -> int | None:
    size = file.get("size")
    return size if isinstance(size, int) and size >= 0 else None


def _known() -> tuple[str, str | None]:
    """The hub's address and the token; huggingface_hub knows the first, and where `hf auth login` leaves the other."""
    endpoint, token = os.environ.get("HF_ENDPOINT"), os.environ.get("HF_TOKEN")
    if not endpoint or not token:
        try:
            from huggingface_hub import constants, get_token
        except ModuleNotFoundError:
            if not endpoint:
                raise FetchError(
                    f"{missing('huggingface_hub', 'engine')}; or set HF_ENDPOINT, the hub's address"
                ) from None
        else:
            endpoint, token = endpoint or constants.ENDPOINT, token or get_token()
    return endpoint.rstrip("/"), token
