"""hf://OWNER/NAME[/PATH]: a repository on the Hugging Face hub, or on a mirror that HF_ENDPOINT names."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, cast

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from headwater.fetch.choice import below, choose
from headwater.fetch.errors import FetchError, TransientError
from headwater.fetch.files import at_once, begin, inside
from headwater.fetch.patience import patiently, retry_after, transient
from headwater.fetch.progress import Watch

T = TypeVar("T")

_HTTPError: Final = cast("type[Exception]", HfHubHTTPError.__mro__[1])
"""HTTPError of the client that the library uses: httpx before its version 2, httpx2 since."""
_OWN: Final = ".cache"
"""Where the library keeps what it knows of a folder."""


def fetch(source: str, folder: Path, revision: str) -> None:
    owner, _, rest = source.removeprefix("hf://").partition("/")
    name, _, path = rest.partition("/")
    repository = f"{owner}/{name}"
    endpoint = os.environ.get("HF_ENDPOINT")  # the library's own reading of it is as old as its import
    # A branch may move while it is fetched: everything is taken from the commit that it is now.
    info = _call(
        repository,
        revision,
        lambda: HfApi(endpoint=endpoint).model_info(repository, revision=revision, files_metadata=True),
    )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted = below(sorted(sizes), path.strip("/"))
    names = set(choose(list(wanted.values())))
    chosen = [whole for whole, short in wanted.items() if short in names]
    if not chosen:
        raise FetchError(f"{source} at {revision} has no files")
    size = sum(sizes[name] for name in chosen)
    begin(folder, f"{source}@{info.sha}", size)
    disable_progress_bars()
    # Not snapshot_download: where the hub cannot be reached it returns what is there, complete or not.
    with Watch(folder, size):
        at_once([partial(_get, endpoint, repository, str(info.sha), name, sizes[name], folder) for name in chosen])
    shutil.rmtree(folder / _OWN, ignore_errors=True)
    _lift(folder, {whole: wanted[whole] for whole in chosen})


def _lift(folder: Path, names: dict[str, str]) -> None:
    """Files of a path within the repository become those of the folder."""
    for whole, short in names.items():
        if whole != short and (old := folder / whole).exists():
            target = inside(folder, short)
            target.parent.mkdir(parents=True, exist_ok=True)
            old.rename(target)
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


def _get(endpoint: str | None, repository: str, commit: str, name: str, size: int, folder: Path) -> None:
    """The library goes on where it broke off, and skips what is there."""
    target = inside(folder, name)
    _call(
        repository,
        commit,
        lambda: hf_hub_download(repository, name, revision=commit, local_dir=folder, endpoint=endpoint),
    )
    if (came := target.stat().st_size) != size:
        raise FetchError(f"hf://{repository}: {name} has {came} bytes, and should have {size}")


def _call(repository: str, revision: str, call: Callable[[], T]) -> T:
    return patiently(lambda: _translated(repository, revision, call))


def _translated(repository: str, revision: str, call: Callable[[], T]) -> T:
    """Foreign errors become ours here, and nowhere else."""
    shown = f"hf://{repository}"
    try:
        return call()
    except HFValidationError:
        raise FetchError(f"{shown} is not of the form hf://OWNER/NAME") from None
    except GatedRepoError:
        raise FetchError(
            f"{shown} is gated: accept its terms on the hub, and give a token by spec.model.secretRef (HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise FetchError(f"{shown} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise FetchError(
            f"{shown} does not exist, or is private and needs a token by spec.model.secretRef (HF_TOKEN)"
        ) from None
    except HfHubHTTPError as error:  # before the next one, which it is as well
        status = error.response.status_code
        message = f"the hub answered {status} for {shown}"
        if transient(status):
            raise TransientError(message, retry_after(error.response.headers.get("retry-after"))) from None
        raise FetchError(f"{message}: {error.server_message or error}") from None
    except (LocalEntryNotFoundError, _HTTPError) as error:
        raise TransientError(
            f"the hub cannot be reached for {shown}; check the network and HF_ENDPOINT: {error}"
        ) from None
