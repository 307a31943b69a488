"""`headwater fetch` of images and artifacts: held to their digests from the pin on, also by odd registries."""

import json
from pathlib import Path

import pytest

from headwater.fetch import fetch
from headwater.fetch.errors import FetchError
from headwater.fetch.registry import Reference, challenges, login
from tests.headwater.archives import TAR, archive
from tests.headwater.fake_stores import (
    FILES,
    WEIGHTS,
    Break,
    Refuse,
    RegistryStore,
    Store,
    Twist,
    digest_of,
    names_in,
    plain,
    serving,
    titled,
)


def source_of(store: Store, tag: str = ":1.0") -> str:
    return f"oci://{store.host}/team/model{tag}"


def test_an_artifact_of_a_layer_a_file(the_registry: RegistryStore, tmp_path: Path) -> None:
    fetch(source_of(the_registry), tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_an_image_whose_layers_are_archives(the_registry: RegistryStore, tmp_path: Path) -> None:
    kind = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
    first, second = archive({"models/config.json": b"old", "models/a/b": b"1"}), archive({"models/config.json": b"{}"})
    image = the_registry.push("image", (first, kind), (second, kind))
    attestation = {"digest": digest_of(b"none"), "platform": {"os": "unknown", "architecture": "unknown"}}
    the_registry.put("2.0", {"manifests": [attestation, {"digest": image, "platform": {"os": "linux"}}]})
    manifest = fetch(source_of(the_registry, ":2.0"), tmp_path / "m")
    assert names_in(tmp_path / "m") == {"config.json": b"{}", "a/b": b"1"}
    assert {each.verified_by for each in manifest.files} == {"sha256 of its layer"}


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


def test_a_damaged_layer_is_fetched_again_once(the_registry: RegistryStore, tmp_path: Path) -> None:
    digest = digest_of(b"{}")
    the_registry.files[digest] = b"[]"
    with pytest.raises(
        FetchError, match=rf"config.json arrived damaged: its sha256 is \w+, and should be {digest[7:]}"
    ):
        fetch(source_of(the_registry), tmp_path / "m")
    assert len(the_registry.ranges(digest)) == 2
    the_registry.files[digest] = b"{}"
    fetch(source_of(the_registry), tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_the_chain_of_digests_begins_with_the_pin(the_registry: RegistryStore, tmp_path: Path) -> None:
    pin = digest_of(the_registry.manifests["1.0"])
    fetch(source_of(the_registry, f"@{pin}"), tmp_path / "m")
    the_registry.manifests[pin] = the_registry.manifests["1.0"] + b" "
    with pytest.raises(FetchError, match=rf"the manifest has the digest sha256:\w+, and should have {pin[7:]}"):
        fetch(source_of(the_registry, f":1.0@{pin}"), tmp_path / "n")


def test_a_manifest_that_an_index_names_is_verified(the_registry: RegistryStore, tmp_path: Path) -> None:
    image = digest_of(the_registry.manifests["1.0"])
    the_registry.put("2.0", {"manifests": [{"digest": image}]})
    the_registry.manifests[image] = the_registry.manifests["1.0"].replace(b"octet", b"OCTET")
    with pytest.raises(FetchError, match="the manifest has the digest"):
        fetch(source_of(the_registry, ":2.0"), tmp_path / "m")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"manifests": []}, "is an index without an image"),
        ({"manifests": "x"}, "is an index without an image"),
        ({"manifests": [{"digest": "sha256:../../evil"}]}, "is an index without an image"),
        ({"layers": []}, "has no layers"),
        ({"layers": {"a": 1}}, "has no layers"),
        ({"layers": [{"digest": "sha256:../../evil", "size": 1}]}, "a layer has no digest, or no size"),
        ({"layers": [{"digest": digest_of(b""), "size": -1}]}, "a layer has no digest, or no size"),
        ({"layers": [{"digest": digest_of(b""), "size": 0, "annotations": 7}]}, "has no title, and is no archive"),
        ([], "came where a JSON object should be"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_one_sentence(
    the_registry: RegistryStore, tmp_path: Path, manifest: object, message: str
) -> None:
    the_registry.put("odd", manifest)
    with pytest.raises(FetchError, match=message):
        fetch(source_of(the_registry, ":odd"), tmp_path / "m")
    assert not list(tmp_path.rglob("evil"))


def test_a_page_of_html_is_no_manifest(the_registry: RegistryStore, tmp_path: Path, waits: list[float]) -> None:
    page = 200, {"Content-Type": "text/html"}, b"<html>log in</html>"
    the_registry.trouble = {"manifests/1.0": [Twist(), Twist(lambda _: page)]}
    with pytest.raises(FetchError, match="text/html came where a JSON object should be; is it the right address"):
        fetch(source_of(the_registry), tmp_path / "m")
    assert not waits


def test_a_circle_of_redirects_ends(the_registry: RegistryStore, tmp_path: Path, waits: list[float]) -> None:
    the_registry.blobs_elsewhere = f"{the_registry.url}/v2/team/model/blobs"
    with pytest.raises(FetchError, match="one redirect leads to another without end"):
        fetch(source_of(the_registry), tmp_path / "m")
    assert not waits


def test_an_image_may_have_a_layer_twice_and_other_digests(the_registry: RegistryStore, tmp_path: Path) -> None:
    layer = archive({"models/config.json": b"{}"})
    the_registry.push("twice", (layer, TAR), (archive({"models/b": b"1"}), TAR), (layer, TAR), kind="sha512")
    fetch(source_of(the_registry, ":twice"), tmp_path / "m")
    assert names_in(tmp_path / "m") == {"config.json": b"{}", "b": b"1"}
    assert len(the_registry.ranges(digest_of(layer, "sha512"))) == 1


def test_model_pack_says_what_is_an_archive(the_registry: RegistryStore, tmp_path: Path) -> None:
    kind = "application/vnd.cncf.model.weight.v1"
    path = {"org.cncf.model.filepath": "model.safetensors"}
    raw = {"mediaType": f"{kind}.raw", "annotations": path}
    packed = {"mediaType": f"{kind}.tar", "annotations": {"org.cncf.model.filepath": "tokenizer"}}
    the_registry.push("pack", (WEIGHTS, raw), (archive({"tokenizer/vocab.txt": b"a"}), packed))
    fetch(source_of(the_registry, ":pack"), tmp_path / "m")
    assert names_in(tmp_path / "m") == {"model.safetensors": WEIGHTS, "tokenizer/vocab.txt": b"a"}


def test_a_private_registry_may_ask_in_two_ways(
    the_registry: RegistryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_registry.user = "dXNlcjpwYXNz"
    the_registry.challenge = 'Basic realm="here",Bearer realm="{url}/token",service="registry"'
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {the_registry.host: {"auth": "dXNlcjpwYXNz"}}}))
    fetch(source_of(the_registry), tmp_path / "m")
    assert names_in(tmp_path / "m") == FILES


def test_an_identity_token_is_given_for_a_token(
    the_registry: RegistryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {the_registry.host: {"identitytoken": "id"}}}))
    fetch(source_of(the_registry), tmp_path / "m")
    assert ("POST", "/token", None) in the_registry.requests


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
    the_registry.push("bad", (b"x", titled("../../evil")))
    with pytest.raises(FetchError, match="leads out of the folder"):
        fetch(source_of(the_registry, ":bad"), tmp_path / "m")
    the_registry.push("worse", (archive({"../evil": b"x"}), TAR))
    with pytest.raises(FetchError, match="cannot be unpacked"):
        fetch(source_of(the_registry, ":worse"), tmp_path / "m")
    assert not list(tmp_path.rglob("evil"))


def test_a_tag_that_is_not_there(the_registry: RegistryStore, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="does not exist"):
        fetch(source_of(the_registry, ""), tmp_path / "m")


HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r.example/a", ("r.example", "a", "latest")),
        ("r.example:5000/a/b:v1", ("r.example:5000", "a/b", "v1")),
        (f"r.example/a:v1@sha256:{HEX}", ("r.example", "a", f"sha256:{HEX}")),
    ],
)
def test_references(text: str, expected: tuple[str, str, str]) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.version) == expected


@pytest.mark.parametrize(
    "text", ["r.example", "r.example/a@sha256:ab", f"r.example/a@sha256:{HEX}/..", "r.example/../a", "r.example/a:x/y"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(FetchError):
        Reference.parse(text)


HUB = ".".join(("docker", "io"))


def test_the_hub_of_docker_has_another_address_and_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Reference.parse(f"{HUB}/model").url == f"https://registry-1.{HUB}/v2/library/model"
    assert Reference.parse(f"{HUB}/team/model").url == f"https://registry-1.{HUB}/v2/team/model"
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {f"https://index.{HUB}/v1/": {"auth": "x"}}}))
    assert login(HUB).basic == "x"


def test_two_challenges_are_two() -> None:
    one = 'Bearer realm="https://r.example/token",service="a b",scope="repository:a:pull,push"'
    bearer = "bearer", {"realm": "https://r.example/token", "service": "a b", "scope": "repository:a:pull,push"}
    assert challenges([one]) == [bearer]
    basic = "basic", {"realm": "r"}
    assert challenges([f'{one}, Basic realm="r"']) == challenges([one, 'Basic realm="r"']) == [bearer, basic]
    assert challenges(["Basic realm=r"]) == [basic]


@pytest.mark.parametrize("text", ["x", '{"auths": {"h": {"username": "u"}}}', '{"auths": {"h": 7}}', "[]"])
def test_a_login_that_cannot_be_read_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", text)
    with pytest.raises(FetchError, match=r"not a Docker config\.json"):
        login("h")
