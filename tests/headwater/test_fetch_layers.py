"""What an image holds, by the rules for layers, and that nothing in it leads out of the folder."""

import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from headwater.fetch import fetch
from headwater.fetch.errors import FetchError
from headwater.fetch.layers import Index, Kind
from tests.headwater.archives import TAR, Member, archive, folder, link
from tests.headwater.fake_stores import RegistryStore, names_in

ALPINE: dict[str, Member] = {
    "bin/busybox": b"elf",
    "bin/sh": link("/bin/busybox"),
    "etc/mtab": link("../proc/mounts"),
    "etc/passwd": b"root",
    "usr/lib": link("/lib"),
}
"""As base images have them: absolute links, and links to nothing."""


def taken(the_registry: RegistryStore, tmp_path: Path, *layers: dict[str, Member]) -> dict[str, bytes]:
    the_registry.push("image", *((archive(layer), TAR) for layer in layers))
    fetch(f"oci://{the_registry.host}/team/model:image", tmp_path / "m")
    return names_in(tmp_path / "m")


CASES: dict[str, tuple[list[dict[str, Member]], dict[str, bytes]]] = {
    "an image from a base image": ([ALPINE, {"models/config.json": b"{}"}], {"config.json": b"{}"}),
    "a model at the root of one": (
        [ALPINE, {"./config.json": b"{}", "tokenizer/a": b"1"}],
        {"config.json": b"{}", "tokenizer/a": b"1"},
    ),
    "a file that is replaced": ([{"models/a": b"1"}, {"models/a": b"22"}], {"a": b"22"}),
    "a whiteout": ([{"models/a": b"1", "models/b": b"2"}, {"models/.wh.a": b""}], {"b": b"2"}),
    "a whiteout, and what is there again": (
        [{"models/a": b"1", "models/d/e": b"2"}, {"models/a": b"3", "models/.wh.a": b"", "models/.wh.d": b""}],
        {"a": b"3"},
    ),
    "an opaque folder": (
        [{"models/d/a": b"1", "models/b": b"2"}, {"models/d/c": b"3", "models/d/.wh..wh..opq": b""}],
        {"d/c": b"3", "b": b"2"},
    ),
    "a file in the place of a folder": ([{"models/d/a": b"1"}, {"models/d": b"2"}], {"d": b"2"}),
    "a folder in the place of a file": ([{"models/d": b"1"}, {"models/d/a": b"2"}], {"d/a": b"2"}),
    "a folder that is named again": ([{"models/d/a": b"1"}, {"models/d": folder()}], {"d/a": b"1"}),
    "links as in the hub's cache": (
        [{"models/blobs/0a": b"1", "models/snapshots/x/config.json": link("../../blobs/0a")}],
        {"blobs/0a": b"1", "snapshots/x/config.json": b"1"},
    ),
    "a link to where the model is": ([{"data/llm/a": b"1", "models": link("/data/llm")}], {"a": b"1"}),
    "a file beside a link, in a later layer": (
        [{"data/llm/a": b"1", "models": link("data/llm")}, {"models/b": b"2"}],
        {"a": b"1", "b": b"2"},
    ),
    "a link that climbs above the root": ([{"etc/a": b"1", "models/a": link("../../../../etc/a")}], {"a": b"1"}),
    "a hard link, whose file is replaced later": (
        [{"models/a": b"1", "models/b": link("models/a", hard=True)}, {"models/a": b"2"}],
        {"a": b"2", "b": b"1"},
    ),
    "a folder within itself": ([{"models/a": b"1", "models/d": link(".")}], {"a": b"1"}),
}


@pytest.mark.parametrize("case", CASES)
def test_layers_lie_on_one_another_as_the_specification_says(
    case: str, the_registry: RegistryStore, tmp_path: Path
) -> None:
    layers, expected = CASES[case]
    assert taken(the_registry, tmp_path, *layers) == expected


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"models/../../evil": b"x"}, "leads out of it"),
        ({"models/a": link("nothing")}, "a is a link that leads to nothing"),
        ({"models/a": link("b"), "models/b": link("a")}, "a is a link that leads to nothing"),
        ({"models/a": link("b"), "models/b": link("a"), "models/a/c": b"1"}, "is a link in a circle"),
        ({"models/a": link("../evil", hard=True)}, "leads out of it"),
        ({"models/a\udc80": b"1"}, "leads out of the folder"),
        ({"etc/passwd": b"root"}, "there is nothing in the source that is wanted"),
    ],
)
def test_what_cannot_be_taken_is_one_sentence(
    members: dict[str, Member], message: str, the_registry: RegistryStore, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=message):
        taken(the_registry, tmp_path, members)
    assert not list(tmp_path.rglob("evil")) and not (tmp_path / "m").exists()


def test_a_link_is_no_way_out_for_what_follows_it(the_registry: RegistryStore, tmp_path: Path) -> None:
    """CVE-2025-4517 and its kin: links so long that the system cannot say where they end, and a file in them."""
    deep = "/".join(["d" * 240] * 16)
    members: dict[str, Member] = {f"models/{deep}/x": folder(), f"models/{'d' * 240}/up": link("../" * 30)}
    members |= {"models/escape": link(f"{'d' * 240}/up"), "models/escape/evil": b"x", "models/ok": b"1"}
    there = taken(the_registry, tmp_path, members)
    assert there["ok"] == b"1" and there["escape/evil"] == b"x", "in the image, the link leads to its root"
    assert all(path.is_relative_to(tmp_path / "m") for path in tmp_path.rglob("evil"))
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("packed", ["plain", "gz", "xz", "zstd"])
def test_archives_are_known_by_their_first_bytes(packed: str, the_registry: RegistryStore, tmp_path: Path) -> None:
    mode = "w" if packed in ("plain", "zstd") else f"w:{packed}"
    content = archive({"models/a": b"1" * 5000, "models/b": b"2"}, mode)
    content = zstandard.compress(content) if packed == "zstd" else content
    the_registry.push("image", (content, TAR))
    fetch(f"oci://{the_registry.host}/team/model:image", tmp_path / "m")
    assert names_in(tmp_path / "m") == {"a": b"1" * 5000, "b": b"2"}


@pytest.mark.parametrize(
    "content",
    [b"no archive", archive({"models/a": b"1" * 9999}, "w:gz")[:-20], b"\x28\xb5\x2f\xfdx"],
    ids=["text", "cut", "zstd"],
)
def test_a_layer_that_is_no_archive_is_one_sentence(
    content: bytes, the_registry: RegistryStore, tmp_path: Path
) -> None:
    the_registry.push("image", (content, TAR))
    with pytest.raises(FetchError, match="a layer cannot be unpacked"):
        fetch(f"oci://{the_registry.host}/team/model:image", tmp_path / "m")


PATHS = st.lists(st.sampled_from(["models", "a", "b", ".wh.a", ".wh..wh..opq", ".."]), min_size=1, max_size=4)
MEMBERS = st.one_of(
    st.just(tarfile.REGTYPE),
    st.just(tarfile.DIRTYPE),
    PATHS.map("/".join),
    PATHS.map(lambda path: "/" + "/".join(path)),
)


@given(st.lists(st.lists(st.tuples(PATHS.map("/".join), MEMBERS, st.booleans()), max_size=8), max_size=3))
def test_no_layers_make_it_fail_otherwise_than_in_words(layers: list[list[tuple[str, bytes | str, bool]]]) -> None:
    index = Index()
    try:
        for number, layer in enumerate(layers):
            members = []
            for name, kind, hard in layer:
                member = link(kind, hard=hard) if isinstance(kind, str) else tarfile.TarInfo()
                member.name = name
                member.type = kind if isinstance(kind, bytes) else member.type
                members.append(member)
            index.lay(number, members)
        files = index.model()
    except FetchError:
        return
    assert all(node.kind is Kind.FILE for node in files.values())
    assert not any({"..", ".", ""} & {*name.split("/")} for name in files)
