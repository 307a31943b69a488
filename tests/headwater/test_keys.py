"""`headwater keys new`: a key that is shown once, and its entry in a file of which nothing else changes."""

import stat
from pathlib import Path

import pytest
import yaml

from headwater import cli
from headwater.keys import KeysFileError, add_to_file, hashed
from headwater_router.admission.key_file import read_keys

ENTRY = {"name": "new", "hash": hashed("sk-0123456789abcdef")}


def test_a_key_is_shown_once_with_an_entry_that_a_router_reads(tmp_path: Path, capsys) -> None:
    assert cli.main(["keys", "new", "team: a"]) == 0
    said = capsys.readouterr()
    key = said.out.strip()
    assert key not in said.err
    file = tmp_path / "keys.yaml"
    file.write_text(said.err.partition("\n")[2])
    (read,) = read_keys(file)
    assert (read.name, f"sha256:{read.digest.hex()}") == ("team: a", hashed(key))


def test_keys_are_added_to_a_file_one_after_the_other(tmp_path: Path, capsys) -> None:
    file = tmp_path / "keys.yaml"
    keys = []
    for name in ("a", "b: [c]", "ä"):
        assert cli.main(["keys", "new", name, "--file", str(file)]) == 0
        keys.append(capsys.readouterr().out.strip())
    assert [(key.name, f"sha256:{key.digest.hex()}") for key in read_keys(file)] == [
        ("a", hashed(keys[0])), ("b: [c]", hashed(keys[1])), ("ä", hashed(keys[2])),
    ]  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "text",
    [
        "keys:\n- name: a\n  key: sk-aaaaaaaaaaaaaaaa\n",
        "# ours\nkeys:\n  - name: a  # the first\n    key: sk-aaaaaaaaaaaaaaaa\n\n# the end",
        "keys:\n    - name: a\n      key: sk-aaaaaaaaaaaaaaaa\n\n\n",
    ],
)
def test_what_is_in_a_file_stays_as_it_is(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    file.chmod(0o640)
    add_to_file(file, ENTRY)
    assert file.read_text().startswith(text.rstrip("\n"))
    assert [key.name for key in read_keys(file)] == ["a", "new"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keys: [{name: a, key: sk-aaaaaaaaaaaaaaaa}]", "add the key by hand"),
        ("keys:\n- name: a\n  key: sk-aaaaaaaaaaaaaaaa\nother: 1\n", "add the key by hand"),
        ("keys:\n- name: new\n  key: sk-aaaaaaaaaaaaaaaa\n", "there is a key of the name 'new' already"),
        ("keys: 5", "has no list `keys`"),
        ("- a", "has no list `keys`"),
        ("keys: [", "cannot be read as YAML"),
        ("keys: \x00", "cannot be read as YAML"),
    ],
)
def test_a_file_that_cannot_take_a_key_stays_as_it_is(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(KeysFileError, match=reason):
        add_to_file(file, ENTRY)
    assert file.read_text() == text


def test_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "keys.yaml", tmp_path / "link.yaml"
    file.write_text("keys:\n")
    link.symlink_to(file)
    add_to_file(link, ENTRY)
    assert link.is_symlink()
    assert [key.name for key in read_keys(file)] == ["new"]


@pytest.mark.parametrize("name", ["", " a", "a\n", "n" * 65])
def test_a_wrong_name_is_told_of_and_makes_no_key(name: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "keys.yaml"
    assert cli.main(["keys", "new", name, "--file", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "NAME: must be 1 to 64 printable characters" in said.err
    assert not file.exists()


def test_a_folder_that_is_not_there_is_told_of(tmp_path: Path, capsys) -> None:
    assert cli.main(["keys", "new", "a", "--file", str(tmp_path / "none" / "keys.yaml")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be written: No such file or directory" in said.err


def test_the_entry_is_plain_yaml(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    add_to_file(file, ENTRY)
    assert yaml.safe_load(file.read_text()) == {"keys": [ENTRY]}
