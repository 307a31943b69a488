"""`headwater fetch` from stores that answer over HTTP: whole or not at all, on from where it was, patient, in words."""

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.cli import main
from headwater.fetch import command, fetch
from headwater.fetch.choice import below, choose
from headwater.fetch.errors import FetchError, TransientError
from headwater.fetch.files import inside, locked, partial_of
from headwater.fetch.patience import patiently, retry_after
from headwater.fetch.registry import Reference, credentials
from tests.headwater.fake_stores import Break, Refuse, RegistryStore, Store, hub, plain, registry, s3, serving

WEIGHTS = bytes(range(256)) * 4096
"""One MiB."""
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer/vocab.txt": b"a\nb\n"}


def names_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited, by us or by the hub's library."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine that the tests run on."""
    for name in ("HF_TOKEN", "DOCKER_AUTH_CONFIG", "AWS_PROFILE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(command, "TERMINATION_LOG", tmp_path / "none")


# A hub


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with serving(Store(dict(FILES)), hub) as store:
        monkeypatch.setenv("HF_ENDPOINT", store.url)
        yield store


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
        "model.safetensors": [Refuse(429, {"Retry-After": "33"})] * 2,  # the library asks twice before it waits
    }
    fetch("hf://owner/model", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    assert any(17 <= wait < 19 for wait in waits) and any(33 <= wait < 35 for wait in waits)


def test_a_download_goes_on_where_it_broke_off(the_hub: Store, tmp_path: Path) -> None:
    the_hub.files["model.safetensors"] = WEIGHTS * 12
    the_hub.trouble = {"model.safetensors": [Break(0), Break(11 * 2**20)]}  # a HEAD has no body, then the GET
    fetch("hf://owner/model", tmp_path / "m")
    assert the_hub.ranges("model.safetensors") == [None, "bytes=10485760-"], "the library writes pieces of 10 MiB"
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
    with pytest.raises(FetchError, match=r"answered 503 for hf://owner/model \(after 8 attempts\)"):
        fetch("hf://owner/model", tmp_path / "m")


def test_a_hub_that_is_not_there_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    with serving(Store({}), hub) as store:
        monkeypatch.setenv("HF_ENDPOINT", store.url)
    with pytest.raises(FetchError, match=r"the hub cannot be reached for hf://owner/model; check the network"):
        fetch("hf://owner/model", tmp_path / "m")
    assert len(waits) == 7


@pytest.mark.parametrize("source", ["s3://bucket/llm", "oci://127.0.0.1:9/team/model"])
def test_a_store_that_is_not_there_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], source: str
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


@pytest.fixture
def the_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with serving(Store({f"llm/base/{name}": content for name, content in FILES.items()}), s3) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        yield store


def test_all_objects_below_a_path_over_several_pages(the_store: Store, tmp_path: Path) -> None:
    the_store.files |= {"llm/base-2/config.json": b"other", "llm/base/": b""}
    fetch("s3://bucket/llm/base/", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    assert all(value and "Credential=key/" in value for value in the_store.authorizations)


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


# A registry


def title(name: str) -> dict[str, object]:
    return {"annotations": {"org.opencontainers.image.title": name}}


def archive(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as members:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            members.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def the_registry() -> Iterator[RegistryStore]:
    with serving(RegistryStore({}), registry) as store:
        assert isinstance(store, RegistryStore)
        store.push("1.0", *((content, title(name)) for name, content in FILES.items()))
        yield store


def source_of(store: Store, tag: str = ":1.0") -> str:
    return f"oci://{store.host}/team/model{tag}"


def test_an_artifact_of_a_layer_a_file(the_registry: RegistryStore, tmp_path: Path) -> None:
    fetch(source_of(the_registry), tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_an_image_whose_layers_are_archives(the_registry: RegistryStore, tmp_path: Path) -> None:
    kind = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
    first, second = archive({"models/config.json": b"old", "models/a/b": b"1"}), archive({"models/config.json": b"{}"})
    the_registry.push("image", (first, kind), (second, kind))
    the_registry.manifests["2.0"] = {"manifests": [{"digest": "image"}]}
    fetch(source_of(the_registry, ":2.0"), tmp_path / "m")
    assert names_in(tmp_path / "m") == {"config.json": b"{}", "a/b": b"1"}


def test_a_layer_goes_on_where_it_broke_off_also_elsewhere(the_registry: RegistryStore, tmp_path: Path) -> None:
    with serving(Store(the_registry.files), plain) as elsewhere:
        the_registry.blobs_elsewhere = elsewhere.url
        digest = next(digest for digest, content in the_registry.files.items() if content == WEIGHTS)
        elsewhere.trouble = {digest: [Break(500_000), Refuse(502)]}
        fetch(source_of(the_registry), tmp_path / "m")
        assert names_in(tmp_path / "m") == FILES
        assert next(bool(part) for part in elsewhere.ranges(digest)) is False
        assert elsewhere.ranges(digest)[-1] is not None
        assert set(elsewhere.authorizations) == {None}, "the token is for the registry alone"


def test_a_damaged_layer_is_fetched_again(the_registry: RegistryStore, tmp_path: Path) -> None:
    digest = next(digest for digest, content in the_registry.files.items() if content == b"{}")
    the_registry.files[digest] = b"[]"
    with pytest.raises(FetchError, match=r"config.json arrived damaged \(after 8 attempts\)"):
        fetch(source_of(the_registry), tmp_path / "m")
    the_registry.files[digest] = b"{}"
    fetch(source_of(the_registry), tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_a_private_registry_wants_what_docker_login_left(
    the_registry: RegistryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_registry.user = "dXNlcjpwYXNz"
    with pytest.raises(FetchError, match="access denied"):
        fetch(source_of(the_registry), tmp_path / "m")
    login = {"auths": {the_registry.host: {"username": "user", "password": "pass"}}}
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps(login))
    fetch(source_of(the_registry), tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_a_layer_must_not_lead_out_of_the_folder(the_registry: RegistryStore, tmp_path: Path) -> None:
    the_registry.push("bad", (b"x", title("../../evil")))
    with pytest.raises(FetchError, match="leads out of the folder"):
        fetch(source_of(the_registry, ":bad"), tmp_path / "m")
    the_registry.push("worse", (archive({"../evil": b"x"}), {"mediaType": "application/vnd.oci.image.layer.v1.tar"}))
    with pytest.raises(FetchError, match="cannot be unpacked"):
        fetch(source_of(the_registry, ":worse"), tmp_path / "m")
    assert not list(tmp_path.rglob("evil"))


def test_a_tag_that_is_not_there(the_registry: RegistryStore, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="does not exist"):
        fetch(source_of(the_registry, ""), tmp_path / "m")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r.example/a", ("r.example", "a", "latest")),
        ("r.example:5000/a/b:v1", ("r.example:5000", "a/b", "v1")),
        ("r.example/a:v1@sha256:ab", ("r.example", "a", "sha256:ab")),
    ],
)
def test_references(text: str, expected: tuple[str, str, str]) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.version) == expected


@pytest.mark.parametrize("text", ["x", '{"auths": {"h": {"username": "u"}}}'])
def test_a_login_that_cannot_be_read_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", text)
    with pytest.raises(FetchError, match=r"not a Docker config\.json"):
        credentials("h")


# What is here already


def test_a_folder_or_a_file_of_this_machine_is_copied(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    fetch(f"file://{tmp_path}/from", tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES
    fetch(f"file://{tmp_path}/from/config.json", tmp_path / "one")
    assert names_in(tmp_path / "one") == {"config.json": b"{}"}


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


def test_a_second_fetcher_waits_and_finds_it_there(the_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with locked(folder):
        second = threading.Thread(target=fetch, args=("s3://bucket/llm/base", folder))
        second.start()
        folder.mkdir()
        assert second.is_alive()
    second.join(10)
    assert not second.is_alive() and the_store.requests == []


# The command


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


# Pure parts


@given(
    st.lists(st.sampled_from(["a.safetensors", "b.bin", "c.pth", "d.gguf", "e.json", "f.h5", "g.onnx"]), unique=True)
)
def test_a_choice_keeps_one_format_and_all_that_is_not_weights(names: list[str]) -> None:
    chosen = choose(names)
    assert ("e.json" in chosen) == ("e.json" in names)
    weights = {name for name in chosen if name != "e.json"}
    assert not weights & {"f.h5", "g.onnx"}
    if "a.safetensors" in names:
        assert weights <= {"a.safetensors", "d.gguf"}
    elif set(names) & {"b.bin", "c.pth", "d.gguf"}:
        assert weights


def test_mistral_style_shards_are_kept_where_there_is_nothing_else() -> None:
    assert choose(["consolidated.safetensors", "params.json"]) == ["consolidated.safetensors", "params.json"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", {"a/b": "a/b", "ab": "ab"}), ("a", {"a/b": "b"}), ("a/b", {"a/b": "b"}), ("x", {})],
)
def test_names_below_a_path(path: str, expected: dict[str, str]) -> None:
    assert below(["a/b", "ab"], path) == expected


@given(st.text(alphabet="a./\\", max_size=12))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    folder = Path("/some/folder")
    try:
        target = inside(folder, name)
    except FetchError:
        return
    assert target.is_relative_to(folder) and ".." not in target.parts


@pytest.mark.parametrize(
    ("value", "expected"),
    [("5", 5.0), (None, None), ("", None), ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after(value) == expected


def test_patience_doubles_and_ends(waits: list[float]) -> None:
    def busy() -> None:
        raise TransientError("busy")

    with pytest.raises(FetchError, match=r"busy \(after 8 attempts\)"):
        patiently(busy)
    assert len(waits) == 7
    assert all(0.8 * 2**n <= wait <= 1.2 * 2**n for n, wait in enumerate(waits[:6]))
