"""Wrong and foreign bytes are never called complete: each source's promises are held against what comes."""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from headwater.fetch import fetch
from headwater.fetch.errors import DamagedError, FetchError
from headwater.fetch.manifest import Manifest
from headwater.fetch.promise import Digest, Hashing, Kind, Promise
from tests.headwater.fake_stores import FILES, SHA, WEIGHTS, Answer, Break, Store, Twist, hub, names_in, s3, serving

OTHER = WEIGHTS[::-1]


def other_bytes(answer: Answer) -> Answer:
    status, headers, body = answer
    return status, headers, bytes(len(body))


# Digests


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.SHA256, hashlib.sha256(WEIGHTS).hexdigest()),
        (Kind.SHA512, hashlib.sha512(WEIGHTS).hexdigest()),
        (Kind.MD5, hashlib.md5(WEIGHTS).hexdigest()),
        (Kind.CRC32, f"{zlib.crc32(WEIGHTS):08x}"),
        (Kind.GIT, hashlib.sha1(b"blob %d\0" % len(WEIGHTS) + WEIGHTS).hexdigest()),
    ],
)
@pytest.mark.parametrize("cut", [1, 1000, len(WEIGHTS)])
def test_a_promise_is_held_whatever_the_bytes_come_in(kind: Kind, value: str, cut: int) -> None:
    hashing = Hashing(Promise(len(WEIGHTS), Digest(kind, value)))
    hashing.update(WEIGHTS[:cut])
    hashing.update(memoryview(WEIGHTS)[cut:])
    hashing.check("a")
    assert hashing.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    hashing.update(b"x")
    with pytest.raises(DamagedError, match=f"a arrived damaged: its {kind} is .*, and should be {value}"):
        hashing.check("a")


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_the_digest_of_parts_is_as_s3_counts_it(size: int) -> None:
    content = WEIGHTS[:size]
    digests = [hashlib.md5(content[start : start + 100]).digest() for start in range(0, size, 100)]
    value = f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"
    hashing = Hashing(Promise(size, Digest(Kind.MD5, value, 100)))
    for start in range(0, size, 33):
        hashing.update(content[start : min(start + 33, size)])
    hashing.check("a")


# A hub


def test_a_hub_that_sends_other_bytes_is_asked_once_more(the_hub: Store, tmp_path: Path, waits: list[float]) -> None:
    the_hub.trouble = {"model.safetensors": [Twist(other_bytes)], "config.json": [Twist(other_bytes)]}
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    the_hub.trouble = {"vocab.txt": [Twist(other_bytes)] * 3}
    with pytest.raises(FetchError, match=r"tokenizer/vocab.txt arrived damaged: its git blob id is"):
        fetch("hf://owner/model", tmp_path / "n")
    assert not (tmp_path / "n").exists() and not waits


def test_a_part_that_was_damaged_between_two_runs_is_begun_anew(the_hub: Store, tmp_path: Path) -> None:
    the_hub.trouble = {"model.safetensors": [Break(500_000), *[Twist(lambda _: (403, {}, b""))] * 9]}
    with pytest.raises(FetchError):
        fetch("hf://owner/model", tmp_path / "m")
    (part,) = (path for path in (tmp_path / "m.partial" / "parts").iterdir() if path.stat().st_size == 500_000)
    part.write_bytes(bytes(500_000))
    the_hub.trouble = {}
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    assert the_hub.ranges("model.safetensors")[-2:] == ["bytes=500000-", None]


def test_a_mirror_that_says_no_sizes_is_no_mirror_of_empty_files(
    tmp_path: Path, alone: None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mirror(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        answer = hub(store, method, target, headers)
        listed = json.dumps({"sha": SHA, "siblings": [{"rfilename": name} for name in store.files]}).encode()
        return (200, {}, listed) if target.startswith("/api/") else answer

    with serving(Store(dict(FILES), {"model.safetensors": [Break(1000)]}), mirror) as store:
        monkeypatch.setenv("HF_ENDPOINT", store.url)
        manifest = fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    assert {each.verified_by for each in manifest.files} == {"nothing"}


def test_one_short_answer_does_not_poison_what_follows(the_hub: Store, tmp_path: Path) -> None:
    def short(answer: Answer) -> Answer:
        return 200, answer[1], answer[2][:1000]

    the_hub.trouble = {"model.safetensors": [Twist(short)]}
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


# An S3 store


def verified(manifest: Manifest) -> dict[str, str]:
    return {each.name: each.verified_by for each in manifest.files}


def test_an_etag_is_a_digest(the_store: Store, tmp_path: Path) -> None:
    assert set(verified(fetch("s3://bucket/llm/base", tmp_path / "m")).values()) == {"md5"}
    the_store.trouble = {"config.json": [Twist(other_bytes)] * 2}
    with pytest.raises(FetchError, match=r"config\.json arrived damaged: its md5 is"):
        fetch("s3://bucket/llm/base", tmp_path / "n")


def headed(**more: str):
    """A store that says more of its objects."""

    def answering(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        status, headed, body = s3(store, method, target, headers)
        named = "list-type=2" not in target
        return status, headed | {name.replace("_", "-"): value for name, value in more.items() if named}, body

    return answering


ETAG = '"0123456789abcdef0123456789abcdef"'
SHA256 = base64.b64encode(hashlib.sha256(WEIGHTS).digest()).decode()
CRC32 = base64.b64encode(zlib.crc32(WEIGHTS).to_bytes(4, "big")).decode()


@pytest.mark.parametrize(
    ("more", "by"),
    [
        ({"x_amz_checksum_sha256": SHA256}, "sha256"),
        ({"x_amz_checksum_sha256": f"{SHA256}-3", "x_amz_checksum_type": "COMPOSITE"}, "md5"),
        ({"x_amz_server_side_encryption": "AES256"}, "md5"),
        ({"x_amz_server_side_encryption": "aws:kms", "x_amz_checksum_crc32": CRC32}, "crc32"),
        ({"x_amz_server_side_encryption": "aws:kms"}, "size"),
        ({"x_amz_server_side_encryption_customer_algorithm": "AES256"}, "size"),
    ],
)
def test_an_object_is_held_to_the_strongest_that_its_store_says(
    more: dict[str, str], by: str, tmp_path: Path, alone: None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Store({"llm/model.safetensors": WEIGHTS}), headed(**more)) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        assert verified(fetch("s3://bucket/llm", tmp_path / "m")) == {"model.safetensors": by}
        if by != "size":
            store.trouble = {"model.safetensors": [Twist(other_bytes)] * 2}
            with pytest.raises(FetchError, match=f"arrived damaged: its {by} is"):
                fetch("s3://bucket/llm", tmp_path / "n")


def test_what_was_uploaded_in_parts_is_verified(
    tmp_path: Path, alone: None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 400_000
    digests = b"".join(hashlib.md5(WEIGHTS[start : start + part]).digest() for start in range(0, len(WEIGHTS), part))
    etag = f'"{hashlib.md5(digests).hexdigest()}-3"'

    def answering(store: Store, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        status, headed, body = s3(store, method, target, {})
        headed = headed | {"ETag": etag} | ({"Content-Length": str(part)} if "partNumber=1" in target else {})
        return status, headed, body.replace(s3(store, "HEAD", "/bucket/llm/a", {})[1]["ETag"].encode(), etag.encode())

    with serving(Store({"llm/a": WEIGHTS}), answering) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        assert verified(fetch("s3://bucket/llm", tmp_path / "m")) == {"a": "md5"}
        store.trouble = {"llm/a": [Twist(other_bytes)] * 2}
        with pytest.raises(FetchError, match="arrived damaged: its md5 is"):
            fetch("s3://bucket/llm", tmp_path / "n")


def test_a_range_that_is_answered_with_all_is_not_appended(the_store: Store, tmp_path: Path) -> None:
    the_store.trouble = {"model.safetensors": [Break(1000), Twist(whole=True)]}
    fetch("s3://bucket/llm/base", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_an_object_that_is_changed_meanwhile_is_listed_anew(the_store: Store, tmp_path: Path) -> None:
    def change(answer: Answer) -> Answer:
        the_store.files["llm/base/model.safetensors"] = OTHER
        return 503, {"Content-Length": "0"}, b""

    the_store.trouble = {"model.safetensors": [Break(1000), Twist(change)]}
    manifest = fetch("s3://bucket/llm/base", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES | {"model.safetensors": OTHER}
    assert verified(manifest)["model.safetensors"] == "md5"
