"""`headwater fetch` from stores that answer over HTTP: whole or not at all, on from where it was, patient, in words."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.cli import fetch as command
from headwater.cli import main
from headwater.fetch import fetch
from headwater.fetch.choice import Wish
from headwater.fetch.errors import FetchError
from headwater.fetch.manifest import MANIFEST, Manifest, read, verify
from headwater.fetch.partial import locked, partial_of
from tests.headwater.fake_stores import FILES, SHA, WEIGHTS, Break, Refuse, Store, hub, names_in, serving

pytestmark = pytest.mark.usefixtures("alone")


# A hub


def test_a_repository_of_the_hub(the_hub: Store, tmp_path: Path) -> None:
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    before = len(the_hub.requests)
    fetch("hf://owner/model", tmp_path / "m")
    assert len(the_hub.requests) == before, "a folder that is there is complete"


def test_the_same_weights_in_other_formats_are_left_out(the_hub: Store, tmp_path: Path) -> None:
    the_hub.files |= dict.fromkeys(["pytorch_model.bin", "original/x.pth", "tf_model.h5", ".gitattributes"], b"x")
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_one_file_of_a_repository(the_hub: Store, tmp_path: Path) -> None:
    the_hub.files |= {"q/a-Q4.gguf": b"4", "q/a-Q8.gguf": b"8"}
    fetch("hf://owner/model/q/a-Q4.gguf", tmp_path / "m")
    assert names_in(tmp_path / "m") == {"a-Q4.gguf": b"4"}


def test_a_busy_hub_is_waited_for_as_long_as_it_asks(the_hub: Store, tmp_path: Path, waits: list[float]) -> None:
    the_hub.trouble = {
        "/revision/main": [Refuse(429, {"Retry-After": "17"}), Refuse(503)],
        "model.safetensors": [Refuse(429, {"Retry-After": "33"})],
    }
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    assert any(17 <= wait < 19 for wait in waits) and any(33 <= wait < 35 for wait in waits)


def test_a_download_goes_on_where_it_broke_off(the_hub: Store, tmp_path: Path) -> None:
    the_hub.files["model.safetensors"] = WEIGHTS * 12
    the_hub.trouble = {"model.safetensors": [Break(11 * 2**20 + 7)]}
    fetch("hf://owner/model", tmp_path / "m")
    assert the_hub.ranges("model.safetensors") == [None, f"bytes={11 * 2**20 + 7}-"]
    assert names_in(tmp_path / "m") == the_hub.files


def test_a_large_file_comes_in_several_ranges(the_hub: Store, tmp_path: Path) -> None:
    the_hub.files["model.safetensors"] = WEIGHTS * 40
    mib = 2**20
    the_hub.trouble = {"model.safetensors": [Break(16 * mib), Break(3 * mib)]}
    fetch("hf://owner/model", tmp_path / "m")
    asked = the_hub.ranges("model.safetensors")
    assert asked[0] == f"bytes=0-{16 * mib - 1}"
    assert len(asked) == 4, "three ranges, and the rest of one that broke"
    assert names_in(tmp_path / "m") == the_hub.files


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("hf://owner/none", "main", "does not exist, or is private and needs a token by spec.model.secretRef"),
        ("hf://owner/model", "v9", "has no revision 'v9'"),
        ("hf://owner/model/none", "main", "has no files"),
        ("hf://own er/model", "main", "is not of the form hf://OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_have(
    the_hub: Store, tmp_path: Path, source: str, revision: str, message: str, waits: list[float]
) -> None:
    with pytest.raises(FetchError, match=message):
        fetch(source, tmp_path / "m", revision)
    assert not waits and not (tmp_path / "m").exists()


def test_a_gated_repository_says_what_to_do(the_hub: Store, tmp_path: Path) -> None:
    the_hub.trouble = {"/revision/main": [Refuse(403, {"X-Error-Code": "GatedRepo"})]}
    with pytest.raises(FetchError, match="is gated: accept its terms"):
        fetch("hf://owner/model", tmp_path / "m")


def test_a_hub_that_stays_down_is_given_up(the_hub: Store, tmp_path: Path, waits: list[float]) -> None:
    the_hub.trouble = {"/revision/main": [Refuse(503)] * 100}
    with pytest.raises(FetchError, match=r"hf://owner/model: 127.0.0.1 answered 503 \(after 8 attempts\)"):
        fetch("hf://owner/model", tmp_path / "m")


def test_a_hub_that_is_not_there_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    with serving(Store({}), hub) as store:
        monkeypatch.setenv("HF_ENDPOINT", store.url)
    with pytest.raises(
        FetchError, match=r"hf://owner/model cannot be reached; check the network and HF_ENDPOINT: [A-Z][a-z ]+"
    ):
        fetch("hf://owner/model", tmp_path / "m")
    assert len(waits) == 7


@pytest.mark.parametrize("source", ["s3://bucket/llm", "oci://127.0.0.1:9/team/model"])
def test_a_store_that_is_not_there_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None, waits: list[float], source: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"\(after 8 attempts\)"):
        fetch(source, tmp_path / "m")
    assert len(waits) == 7


def test_what_came_of_another_state_is_not_mixed_in(the_hub: Store, tmp_path: Path) -> None:
    partial = partial_of(tmp_path / "m")
    partial.mkdir()
    (partial / "stale.json").write_text("old")
    (partial / ".headwater-origin").write_text("hf://owner/model@another")
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


# An S3 store


def test_all_objects_below_a_path_over_several_pages(the_store: Store, tmp_path: Path) -> None:
    the_store.files |= {"llm/base-2/config.json": b"other", "llm/base/": b""}
    fetch("s3://bucket/llm/base/", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    signed = zip(the_store.authorizations, the_store.queries, strict=True)
    assert all("Credential=key/" in (header or "") or "Credential=key%2F" in query for header, query in signed)


def test_a_public_bucket_needs_no_key(the_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    fetch("s3://bucket/llm/base", tmp_path / "m")
    assert set(the_store.authorizations) == {None}


def test_an_object_goes_on_where_it_broke_off(the_store: Store, tmp_path: Path, waits: list[float]) -> None:
    the_store.trouble = {
        "model.safetensors": [Break(1000), Refuse(503, {"Retry-After": "9"})],
        "/bucket": [Refuse(429)],
    }
    fetch("s3://bucket/llm/base", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    resumed = [part for part in the_store.ranges("model.safetensors") if part]
    assert resumed and all(int(part.removeprefix("bytes=").strip("-")) > 0 for part in resumed)
    assert any(wait >= 9 for wait in waits)


def test_an_interrupted_fetch_is_taken_up_by_the_next(the_store: Store, tmp_path: Path) -> None:
    the_store.trouble = {"model.safetensors": [Break(600_000)] + [Refuse(500)] * 20}
    with pytest.raises(FetchError, match="after 8 attempts"):
        fetch("s3://bucket/llm/base", tmp_path / "m")
    assert not (tmp_path / "m").exists()
    the_store.trouble, the_store.requests = {}, []
    fetch("s3://bucket/llm/base", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    (part,) = the_store.ranges("model.safetensors")
    assert part is not None
    assert the_store.ranges("config.json") == [], "what was complete is not asked for again"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://other/llm", "does not exist"),
        ("s3://bucket/none", "has no objects"),
        ("s3://bucket/llm/bas", "no objects"),
    ],
)
def test_what_the_store_does_not_have(the_store: Store, tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        fetch(source, tmp_path / "m")


def test_a_denied_access_says_what_to_give(the_store: Store, tmp_path: Path) -> None:
    the_store.trouble = {"/bucket": [Refuse(403)]}
    with pytest.raises(FetchError, match="access denied"):
        fetch("s3://bucket/llm/base", tmp_path / "m")


# What is here already


def test_a_folder_or_a_file_of_this_machine_is_copied(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    fetch(f"file://{tmp_path}/from", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    fetch(f"file://{tmp_path}/from/config.json", tmp_path / "one")
    assert names_in(tmp_path / "one") == {"config.json": b"{}"}


def test_code_of_a_model_is_taken_from_a_folder_as_from_the_hub(tmp_path: Path, the_hub: Store) -> None:
    the_hub.files = {"config.json": b"{}", "modeling.py": b"code"}
    (tmp_path / "from").mkdir()
    for name, content in the_hub.files.items():
        (tmp_path / "from" / name).write_bytes(content)
    fetch("hf://owner/model", tmp_path / "m")
    fetch(f"file://{tmp_path}/from", tmp_path / "n")
    assert names_in(tmp_path / "m") == names_in(tmp_path / "n") == the_hub.files


def test_a_package_is_copied_without_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "my_model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    fetch("package://my-model", tmp_path / "m")
    assert names_in(tmp_path / "m") == {"config.json": b"{}"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file:///nowhere/at/all", "there is no /nowhere/at/all"),
        ("package://no_such_package", "is not installed"),
        ("pvc://claim/x", 'one of hf://, s3://, oci://, file://, package://; found "pvc://claim/x"'),
        ("model", "must begin with one of"),
    ],
)
def test_what_cannot_be_fetched(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        fetch(source, tmp_path / "m")


def test_a_volume_that_is_too_small_is_told_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, the_store: Store
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(FetchError, match=r"a larger spec\.weights\.size"):
        fetch("s3://bucket/llm/base", tmp_path / "m")
    assert the_store.ranges("config.json") == []


def test_what_gets_its_name_is_on_the_disk_before(
    the_hub: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and the names in folders: else a crash of the machine leaves names without bytes."""
    synced: set[int] = set()
    rename, fsync = os.rename, os.fsync

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def held(source: Path, target: Path) -> None:
        inside = [Path(source), *Path(source).rglob("*")]
        late = [path.name for path in inside if path.stat().st_ino not in synced]
        assert not late, "these may be lost"
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", held)
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    assert tmp_path.stat().st_ino in synced


def test_a_second_fetcher_waits_and_finds_it_there(the_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with locked(folder):
        second = threading.Thread(target=fetch, args=("s3://bucket/llm/base", folder))
        second.start()
        folder.mkdir()
        (folder / MANIFEST).write_bytes(Manifest("s3://bucket/llm/base", "main", "", ()).encode())
        assert second.is_alive()
    second.join(60)
    assert not second.is_alive() and the_store.requests == []


def test_a_source_that_is_there_is_only_that(tmp_path: Path, the_hub: Store) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    fetch("hf://owner/model", folder)  # nothing was in it
    with pytest.raises(FetchError, match=r"m holds hf://owner/model at main, not hf://owner/model at v2: remove it"):
        fetch("hf://owner/model", folder, "v2")
    with pytest.raises(
        FetchError, match=r"holds hf://owner/model at main, not hf://owner/model at main --exclude \*.txt"
    ):
        fetch("hf://owner/model", folder, wish=Wish(exclude=("*.txt",)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").touch()
    with pytest.raises(FetchError, match="headwater fetch did not put it there"):
        fetch("hf://owner/model", tmp_path / "other")


def test_the_manifest_says_what_there_is_and_what_is_not(tmp_path: Path, the_hub: Store) -> None:
    the_hub.files |= {"pytorch_model.bin": b"x", "notes.txt": b""}
    manifest = fetch("hf://owner/model", tmp_path / "m", wish=Wish(exclude=("notes.txt",)))
    assert manifest == read(tmp_path / "m") == verify(tmp_path / "m")
    assert manifest.state == SHA
    assert manifest.left_out == ("notes.txt", "pytorch_model.bin")
    assert {each.name: (each.size, each.verified_by) for each in manifest.files} == {
        "config.json": (2, "git blob id"),
        "model.safetensors": (2**20, "sha256"),
        "tokenizer/vocab.txt": (4, "git blob id"),
    }
    assert manifest.summary() == "3 files, 0.0 GiB, verified: 2 by git blob id, 1 by sha256"


# The command


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "config.json").write_bytes(b"[]"), "config.json has other bytes"),
        (lambda m: (m / "config.json").write_bytes(b"{ }"), "config.json has 3 bytes, not 2"),
        (lambda m: (m / "config.json").unlink(), "config.json is missing"),
        (lambda m: (m / "more.py").touch(), "more.py is not of the source"),
        (lambda m: (m / MANIFEST).write_text("{"), "cannot be read"),
        (lambda m: (m / MANIFEST).unlink(), "did not put it there"),
    ],
)
def test_a_folder_is_verified_again(
    damage: Callable[[Path], Any],
    message: str,
    tmp_path: Path,
    the_hub: Store,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "m"
    fetch("hf://owner/model", folder)
    assert main(["fetch", "--verify", str(folder)]) == 0
    assert "holds hf://owner/model at main: 3 files" in capsys.readouterr().out
    damage(folder)
    assert main(["fetch", "--verify", str(folder)]) == 1
    assert message in capsys.readouterr().err


def test_it_takes_a_source_and_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "hf://owner/model"]) == 2
    assert "SOURCE and FOLDER, or --verify FOLDER" in capsys.readouterr().err


def test_what_was_verified_is_left_to_kubernetes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, the_hub: Store
) -> None:
    (tmp_path / "last-words").touch()
    monkeypatch.setattr(command, "TERMINATION_LOG", tmp_path / "last-words")
    assert main(["fetch", "hf://owner/model", str(tmp_path / "m")]) == 0
    assert (tmp_path / "last-words").read_text() == "3 files, 0.0 GiB, verified: 2 by git blob id, 1 by sha256"


def test_the_command_leaves_its_last_words_to_kubernetes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last-words").touch()
    monkeypatch.setattr(command, "TERMINATION_LOG", tmp_path / "last-words")
    assert main(["fetch", "file:///nowhere", str(tmp_path / "m")]) == 1
    message = "file:///nowhere: there is no /nowhere"
    assert (tmp_path / "last-words").read_text() == message
    errors = capsys.readouterr().err
    assert f"headwater fetch: {message}" in errors and "Traceback" not in errors


def test_the_command_reports_in_lines_of_json(
    the_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "s3://bucket/llm/base", str(tmp_path / "m"), "--revision", "main"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["fetching", "fetched"]
    assert lines[0]["bytes"] == sum(map(len, FILES.values()))
