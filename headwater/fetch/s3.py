"""s3://BUCKET/PATH: all objects below a path, or one object. Credentials, region and endpoint are found as by the AWS
tools: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a role of the service account, and so on.

boto3 lists and signs; the bytes come by our own transport. Each object is held to the strongest checksum that can be
counted without a library of its own: its SHA-256, the MD5 that its ETag is (of parts, too), or its CRC32.
"""

import asyncio
import base64
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, SSLError

from headwater.fetch.choice import below
from headwater.fetch.download import File
from headwater.fetch.errors import ChangedError, FetchError, TransientError
from headwater.fetch.patience import at_once, retry_after, transient
from headwater.fetch.promise import Digest, Kind, Promise
from headwater.fetch.source import Asking, Listing
from headwater.fetch.transport import Asked, Document, Remote

T = TypeVar("T")

_SLOW_DOWN: Final = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout")
_FROZEN: Final = ("GLACIER", "DEEP_ARCHIVE")
_VALID: Final = 3600
"""Seconds that a signed address holds."""
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS: Final = re.compile(r"[0-9a-f]{32}-\d+")


@dataclass(frozen=True, slots=True)
class _Object:
    size: int
    etag: str
    storage: str


class _Bucket:
    """Calls raise FetchError and TransientError."""

    advice = "check the network and AWS_ENDPOINT_URL"

    def __init__(self, source: str, bucket: str) -> None:
        self.name = source
        self.etags: dict[str, str] = {}
        """Of keys, as they were listed: a part of one content must not be followed by a part of another."""
        self._bucket = bucket
        self._client = _client(None)

    def ask(self, key: str) -> Asked:
        wanted = {"Bucket": self._bucket, "Key": key}
        sign = partial(self._client.generate_presigned_url, "get_object", wanted, ExpiresIn=_VALID)
        return Asked(_translated(self.name, sign), {"If-Match": self.etags[key]})

    async def admitted(self, refused: Document) -> bool:
        """boto3 finds another region for itself, and not for what it signs."""
        region = refused.headers.get("x-amz-bucket-region")
        if refused.status not in (301, 307, 400) or region is None:
            return False
        if region != self._client.meta.region_name:  # else another request has found out meanwhile
            self._client = _client(region)
        return True

    def refusal(self, refused: Document) -> FetchError:
        try:
            code = ElementTree.fromstring(refused.body).findtext("{*}Code") or ""
        except ElementTree.ParseError:
            code = ""
        return _refusal(self.name, refused.status, code)

    async def call(self, operation: str, **arguments: Any) -> Any:
        """One of boto3's, in the region where the bucket is."""
        try:
            return await self._call(operation, arguments)
        except _ElsewhereError as error:
            self._client = _client(error.region)
            return await self._call(operation, arguments)

    async def _call(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        client = self._client
        call = getattr(client, operation)
        return await asyncio.to_thread(_translated, self.name, lambda: call(Bucket=self._bucket, **arguments))


class _ElsewhereError(FetchError):
    def __init__(self, source: str, region: str) -> None:
        super().__init__(f"{source} is in {region}; AWS_REGION says where to ask")
        self.region = region


async def list_files(source: str, revision: str, asking: Asking) -> Listing:
    name, _, prefix = source.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    bucket = _Bucket(source, name)
    objects = await _objects(bucket, prefix, asking)
    names = below(sorted(objects), prefix)
    chosen = asking.wish.choose(list(names.values()))
    if not chosen:
        raise FetchError(f"{source} has no objects" + (" that are wanted" if names else ""))
    keys = {key: short for key, short in names.items() if short in chosen}
    promises = await at_once(asking.lines.patiently(partial(_promise, bucket, key, objects[key])) for key in keys)
    bucket.etags = {key: promise.state for key, promise in zip(keys, promises, strict=True)}
    files = [
        File(short, promise, Remote(asking.transport, bucket, key))
        for (key, short), promise in zip(keys.items(), promises, strict=True)
    ]
    return Listing("", files, [short for short in names.values() if short not in chosen])


async def _objects(bucket: _Bucket, prefix: str, asking: Asking) -> dict[str, _Object]:
    objects: dict[str, _Object] = {}
    more: dict[str, str] = {}
    while True:
        ask = partial(bucket.call, "list_objects_v2", Prefix=prefix, **more)
        page = await asking.lines.patiently(ask)
        for each in page.get("Contents", []):
            if not each["Key"].endswith("/"):
                objects[each["Key"]] = _Object(each["Size"], each["ETag"], each.get("StorageClass", ""))
        if not page.get("IsTruncated"):
            return objects
        more = {"ContinuationToken": page["NextContinuationToken"]}


async def _promise(bucket: _Bucket, key: str, listed: _Object) -> Promise:
    head = await bucket.call("head_object", Key=key, ChecksumMode="ENABLED")
    restored = 'ongoing-request="false"' in head.get("Restore", "")
    if (listed.storage in _FROZEN or "ArchiveStatus" in head) and not restored:
        raise _frozen(f"{bucket.name}: {key}")
    return Promise(head["ContentLength"], await _digest(bucket, key, head), head["ETag"])


async def _digest(bucket: _Bucket, key: str, head: Mapping[str, Any]) -> Digest | None:
    """What the store says of the bytes. With a key of somebody's own, an ETag is no digest."""
    whole = head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    if whole and (sha256 := _hexadecimal(head.get("ChecksumSHA256"), 32)):
        return Digest(Kind.SHA256, sha256)
    etag = head["ETag"].strip('"').lower()
    own_key = head.get("ServerSideEncryption", "").startswith("aws:kms") or "SSECustomerAlgorithm" in head
    if _MD5.fullmatch(etag) and not own_key:
        return Digest(Kind.MD5, etag)
    if _MD5_OF_PARTS.fullmatch(etag) and not own_key:
        part = (await bucket.call("head_object", Key=key, PartNumber=1))["ContentLength"]
        if part and -(-head["ContentLength"] // part) == int(etag.partition("-")[2]):
            return Digest(Kind.MD5, etag, part)
    if whole and (crc32 := _hexadecimal(head.get("ChecksumCRC32"), 4)):
        return Digest(Kind.CRC32, crc32)
    return None


def _hexadecimal(encoded: str | None, size: int) -> str | None:
    """None for what is not one digest, such as that of parts."""
    try:
        value = base64.b64decode(encoded or "", validate=True)
    except ValueError:
        return None
    return value.hex() if len(value) == size else None


def _client(region: str | None) -> Any:
    session = boto3.Session()
    # We wait and try again ourselves, as Retry-After says.
    options: dict[str, Any] = {"retries": {"total_max_attempts": 1}, "connect_timeout": 30, "read_timeout": 30}
    # Stores other than Amazon's know nothing of the newer checksums.
    options |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    options["signature_version"] = "s3v4" if session.get_credentials() else UNSIGNED  # UNSIGNED: a public bucket
    return session.client(
        "s3",
        region_name=region or session.region_name or "us-east-1",
        verify=os.environ.get("SSL_CERT_FILE") or None,
        config=Config(**options),
    )


def _translated(source: str, call: Callable[[], T]) -> T:
    """Foreign errors become ours here, and nowhere else."""
    try:
        return call()
    except ClientError as error:
        raise _ours(source, error) from None
    except SSLError as error:
        raise FetchError(
            f"{source}: the certificate is not trusted; SSL_CERT_FILE names a file with the CA's: {error}"
        ) from None
    except (ConnectionError, HTTPClientError) as error:
        raise TransientError(f"{source} cannot be reached; {_Bucket.advice}: {error}") from None
    except BotoCoreError as error:
        raise FetchError(f"{source}: {error}") from None


def _ours(source: str, error: ClientError) -> FetchError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    metadata = error.response.get("ResponseMetadata", {})
    status, headers = metadata.get("HTTPStatusCode", 0), metadata.get("HTTPHeaders", {})
    if transient(status) or code in _SLOW_DOWN:
        return TransientError(f"{source}: the store answered {status} {code}", retry_after(headers.get("retry-after")))
    region = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region")
    if status in (301, 307, 400) and region:
        return _ElsewhereError(source, region)
    return _refusal(source, status, code)


def _refusal(source: str, status: int, code: str) -> FetchError:
    if code in _SLOW_DOWN:
        return TransientError(f"{source}: the store answered {status} {code}")
    if code == "InvalidObjectState":
        return _frozen(source)
    if status == 412:
        return ChangedError(f"{source} was changed while it was fetched")
    if status in (401, 403):
        return FetchError(
            f"{source}: access denied ({code or status}); give keys by spec.model.secretRef (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY), or a role"
        )
    if status == 404:
        return FetchError(f"{source} does not exist ({code or status}); AWS_ENDPOINT_URL says which store is asked")
    return FetchError(f"{source}: the store answered {status} {code}")


def _frozen(what: str) -> FetchError:
    return FetchError(f"{what} is in an archive (Glacier): restore it, or copy it to another storage class, first")
