"""s3://BUCKET/PATH: all objects below a path, or one object. Credentials, region and endpoint are found as by the AWS
tools: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a role of the service account, and so on."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

from headwater.fetch.choice import below, choose
from headwater.fetch.errors import FetchError, TransientError
from headwater.fetch.files import AT_ONCE, at_once, begin, inside, write
from headwater.fetch.patience import patiently, retry_after, transient
from headwater.fetch.progress import Watch

T = TypeVar("T")

_PIECE: Final = 256 * 1024
_SLOW_DOWN: Final = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout")


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    size: int
    etag: str


def fetch(source: str, folder: Path, revision: str) -> None:
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    client = _client()
    objects = {each.key: each for each in _translated(source, lambda: _list(client, bucket, prefix))}
    names = below(sorted(objects), prefix)
    short = set(choose(list(names.values())))
    chosen = {name: objects[key] for key, name in names.items() if name in short}
    if not chosen:
        raise FetchError(f"{source} has no objects")
    state = hashlib.sha256(repr(sorted(chosen.items())).encode()).hexdigest()
    size = sum(each.size for each in chosen.values())
    begin(folder, f"{source}@{state}", size)
    with Watch(folder, size):
        at_once([partial(_get, client, source, bucket, each, inside(folder, name)) for name, each in chosen.items()])


def _client() -> Any:
    session = boto3.Session()
    # We wait and try again ourselves, as Retry-After says.
    options: dict[str, Any] = {"retries": {"total_max_attempts": 1}, "max_pool_connections": AT_ONCE}
    # Stores other than Amazon's know nothing of the newer checksums.
    options |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    if session.get_credentials() is None:
        options["signature_version"] = UNSIGNED  # a public bucket
    return session.client("s3", region_name=session.region_name or "us-east-1", config=Config(**options))


def _list(client: Any, bucket: str, prefix: str) -> list[_Object]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [
        _Object(each["Key"], each["Size"], each["ETag"])
        for page in pages
        for each in page.get("Contents", [])
        if not each["Key"].endswith("/")
    ]


def _get(client: Any, source: str, bucket: str, wanted: _Object, target: Path) -> None:
    def read(start: int) -> Iterable[bytes]:
        part = {"Range": f"bytes={start}-"} if start else {}
        # If it has changed since it was listed, a part of the one must not be followed by a part of the other.
        answer = client.get_object(Bucket=bucket, Key=wanted.key, IfMatch=wanted.etag, **part)
        body: Iterable[bytes] = answer["Body"].iter_chunks(_PIECE)
        return body

    _translated(source, lambda: write(target, wanted.size, read))


def _translated(source: str, call: Callable[[], T]) -> T:
    """Try it patiently; foreign errors become ours here, and nowhere else."""

    def translated() -> T:
        try:
            return call()
        except ClientError as error:
            raise _ours(source, error) from None
        except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
            raise TransientError(f"{source}: {error}") from None
        except BotoCoreError as error:
            raise FetchError(f"{source}: {error}") from None

    return patiently(translated)


def _ours(source: str, error: ClientError) -> FetchError:
    code = error.response.get("Error", {}).get("Code", "")
    metadata = error.response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode", 0)
    if transient(status) or code in _SLOW_DOWN:
        after = retry_after(metadata.get("HTTPHeaders", {}).get("retry-after"))
        return TransientError(f"{source}: the store answered {status} {code}", after)
    if status == 412:
        return FetchError(f"{source} was changed while it was fetched; fetch it again")
    if status in (401, 403):
        return FetchError(f"{source}: access denied ({code}); give keys by spec.model.secretRef, or a role")
    if status == 404:
        return FetchError(f"{source} does not exist ({code})")
    return FetchError(f"{source}: {error}")
