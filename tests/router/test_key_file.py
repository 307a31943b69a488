"""The file of keys: what it may say, that anything else refuses it, and that no refusal repeats what it says."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.keys import KeysFileError, hashed
from headwater_router.admission import key_file
from headwater_router.admission.key_file import MOST_BYTES, MOST_KEYS, read_keys, stamp

KEY = "sk-0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_key_has_the_limits_that_stand_there(file: Path) -> None:
    file.write_text(
        f"""
keys:
  - name: team-a
    hash: {hashed(KEY)}
    models: [smollm2, "ns/*"]
    requests_per_minute: 600
    max_concurrent: 64
    cache_salt: own
  - {{name: old, key: sk-abcdefghijklmnop, disabled: true}}
"""
    )
    first, second = read_keys(file)
    assert (first.name, first.requests_per_minute, first.max_concurrent) == ("team-a", 600, 64)
    assert [first.may_use(model) for model in ("smollm2", "ns/a", "ns/", "smollm", "smollm22", "other")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert second.disabled
    assert second.may_use("whatever")
    assert (second.requests_per_minute, second.max_concurrent, second.cache_salt) == (None, None, None)


def test_a_hash_and_the_key_itself_are_the_same(file: Path) -> None:
    file.write_text(f"keys: [{{name: a, key: {KEY}, cache_salt: own}}]")
    (plain,) = read_keys(file)
    file.write_text(f"keys: [{{name: a, hash: '{hashed(KEY).upper().replace('SHA', 'sha')}', cache_salt: own}}]")
    assert read_keys(file) == [plain]


def test_a_key_itself_is_not_kept(file: Path) -> None:
    file.write_text(f"keys: [{{name: a, key: {KEY}}}]")
    assert KEY not in repr(read_keys(file))


def test_salts_differ_by_key_and_tell_nothing_of_it(file: Path) -> None:
    file.write_text(
        f"keys: [{{name: a, key: {KEY}, cache_salt: own}}, {{name: b, key: {KEY}2, cache_salt: own}}, "
        f"{{name: c, key: {KEY}3, cache_salt: none}}]"
    )
    first, second, third = read_keys(file)
    assert first.cache_salt is not None
    assert len(first.cache_salt) == 32
    assert int(first.cache_salt, 16)
    assert first.cache_salt != second.cache_salt
    assert third.cache_salt is None
    assert first.cache_salt not in hashed(KEY)


SECRET = "sk-very-secret-key-of-mine"


def _joined(pieces: list[tuple[str, str]]) -> bytes:
    return "".join(tag + piece for tag, piece in pieces).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("# nothing but a comment", "is empty"),
        ("keys: []", "keys: must have at least one"),
        ("keys:", "keys: must be a list"),
        ("{}", "keys: is required"),
        (f"- name: a\n  key: {SECRET}", "must have a list `keys`"),
        (f"keys: [{SECRET}]", "keys[0]: must have fields"),
        (f"keys: {{a: {SECRET}}}", "keys: must be a list"),
        (f"keys: [{{name: a, Key: {SECRET}}}]", "keys[0]: has an unknown field"),
        (f"keys: [{{name: a, 'key:{SECRET}': }}]", "keys[0]: has an unknown field"),
        (f"keys: [{{name: a, key: {SECRET}, model: [m]}}]", "keys[0]: has an unknown field"),
        (f"keys: [{{name: a, key: {SECRET}}}]\nkey: []", "has an unknown field"),
        ("keys: [{name: a}]", "keys[0]: must have one of `hash` and `key`"),
        (f"keys: [{{name: a, key: {SECRET}, hash: {hashed(SECRET)}}}]", "keys[0]: must have one of `hash` and `key`"),
        (f"keys: [{{key: {SECRET}}}]", "keys[0].name: is required"),
        ("keys: [{name: a, hash: sha256:12}]", "keys[0].hash: must be `sha256:` and 64 hex digits"),
        (f"keys: [{{name: a, hash: {SECRET}}}]", "keys[0].hash: must be `sha256:`"),
        ("keys: [{name: a, key: short}]", "keys[0].key: must be 16 to 512 ASCII characters without spaces"),
        ("keys: [{name: a, key: 'ä23456789012345678'}]", "keys[0].key: must be 16 to 512 ASCII"),
        ("keys: [{name: a, key: '123456789 12345678'}]", "keys[0].key: must be 16 to 512 ASCII"),
        ("keys: [{name: a, key: 12345678901234567890}]", "keys[0].key: must be text"),
        (f"keys: [{{name: '', key: {SECRET}}}]", "keys[0].name: must be 1 to 64 printable characters"),
        (f"keys: [{{name: {'n' * 65}, key: {SECRET}}}]", "keys[0].name: must be 1 to 64"),
        (f'keys: [{{name: "a\\nb", key: {SECRET}}}]', "keys[0].name: must be 1 to 64"),
        (f"keys: [{{name: a, key: {SECRET}, models: m}}]", "keys[0].models: must be a list"),
        (f"keys: [{{name: a, key: {SECRET}, models: [1]}}]", "keys[0].models[0]: must be text"),
        (f"keys: [{{name: a, key: {SECRET}, models: ['a*b']}}]", "`*` may stand only at the end"),
        (f"keys: [{{name: a, key: {SECRET}, models: ['']}}]", "keys[0].models[0]: must be names of models"),
        (f"keys: [{{name: a, key: {SECRET}, requests_per_minute: 0}}]", "must be greater than or equal to 1"),
        (f"keys: [{{name: a, key: {SECRET}, requests_per_minute: 1.5}}]", "must be a whole number"),
        (f"keys: [{{name: a, key: {SECRET}, requests_per_minute: true}}]", "must be a whole number"),
        (f"keys: [{{name: a, key: {SECRET}, max_concurrent: '5'}}]", "must be a whole number"),
        (f"keys: [{{name: a, key: {SECRET}, cache_salt: mine}}]", "must be 'own' or 'none'"),
        (f"keys: [{{name: a, key: {SECRET}, disabled: 'no'}}]", "must be true or false"),
        (f"keys: [{{name: a, key: {SECRET}}}, {{name: a, key: {SECRET}2}}]", "there are two keys of the name 'a'"),
        (f"keys: [{{name: a, key: {SECRET}}}, {{name: b, hash: {hashed(SECRET)}}}]", "of 'b' is that of another"),
        (f"keys: [{{name: a, key: {SECRET}}}]\nkeys: [{{name: b, key: {SECRET}}}]", "line 1: a field is given twice"),
        (f"keys:\n- name: a\n  key: {SECRET}\n  key: {SECRET}2", "line 2: a field is given twice"),
        (f"a: &a [{SECRET}]\nkeys: [*a]", "aliases are not allowed"),
        (f"keys:\n- &a {{name: a, key: {SECRET}}}\n- {{<<: *a, name: b}}", "names of fields must be plain text"),
        (f"keys:\n- ? [{SECRET}]\n  : a", "names of fields must be plain text"),
        (f"keys: [{{name: a, key: {SECRET}: x}}]", "not YAML"),
        (f"keys:\n- name: a\n  key:{SECRET}", "line 4: could not find expected ':'"),
        (f"keys: !!python/object:os.system {{a: {SECRET}}}", "not YAML"),
        ("[" * 100_000, "not YAML"),
        (f"keys: [{{name: a, key: !!int {SECRET}}}]", "not YAML"),
        (f"keys: [{{name: a, key: !!bool {SECRET}}}]", "not YAML"),
        (f"keys: [{{name: a, key: !!timestamp {SECRET}}}]", "not YAML"),
        ("keys: [{name: 2026-13-45, key: a}]", "not YAML"),
        (f"keys: [{{name: a, key: !{SECRET} x}}]", "not YAML"),
        (f"keys: [{{name: a, key: !{SECRET}!x x}}]", "not YAML"),
        (f"keys: [{{name: a, key: *{SECRET}}}]", "found undefined alias"),
        (f"keys: [&{SECRET} a, &{SECRET} b]", "second occurrence"),
    ],
)  # fmt: skip
def test_what_is_wrong_refuses_the_file_and_is_not_repeated(text: str, reason: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(KeysFileError) as refused:
        read_keys(file)
    message = str(refused.value)
    assert message.startswith(f"{file}: ")
    assert reason in message
    assert SECRET not in message
    assert "\n" not in message


TAGS = st.sampled_from(
    ["", "!!bool ", "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!x ", "&a ", "*a "]
)
PIECES = st.sampled_from(["keys:", "- ", "name: ", "key: ", "hash: ", "models: ", "\n", "  ", "{", "}", "[", "]", ",", ": ", "?", "<<: ", "0x", "1e9", "~", "'", '"', "|", "#", "\t", "a", SECRET])  # fmt: skip  # noqa: E501


@given(st.one_of(st.binary(max_size=200), st.lists(st.tuples(TAGS, PIECES), max_size=30).map(_joined)))
def test_no_file_does_more_than_to_be_refused(content: bytes) -> None:
    """A failure of another kind would end the task that reads it, and with it the router."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            read_keys(Path(file.name))
        except KeysFileError as error:
            assert SECRET not in str(error)


def test_bytes_that_are_no_text_refuse_the_file(file: Path) -> None:
    for content in (b"keys: \xff", b"\xff\xfe\x00", b"keys: \x00", os.urandom(1000)):
        file.write_bytes(content)
        with pytest.raises(KeysFileError):
            read_keys(file)


def test_aliases_that_would_unfold_to_gigabytes_cost_nothing(file: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefghij", "bcdefghijk", strict=False)]  # fmt: skip  # noqa: E501
    for bomb in ("keys: *k", "keys: [*k, *k]", "keys: [{name: *k}]", "keys: [{<<: [*k, *k]}]"):
        file.write_text("\n".join([*lines, bomb]))
        with pytest.raises(KeysFileError, match=r"aliases are not allowed|plain text"):
            read_keys(file)


def test_the_file_may_have_many_keys_but_not_any_number(file: Path) -> None:
    def entries(count: int) -> str:
        return "keys:\n" + "".join(f"- {{name: n{n}, hash: 'sha256:{n:064x}'}}\n" for n in range(count))

    file.write_text(entries(MOST_KEYS))
    assert len(read_keys(file)) == MOST_KEYS
    file.write_text(entries(MOST_KEYS + 1))
    with pytest.raises(KeysFileError, match=f"keys: .* at most {MOST_KEYS} elements"):
        read_keys(file)


def test_no_more_of_a_file_is_read_than_is_allowed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    monkeypatch.setattr(key_file, "_load", lambda content: pytest.fail("was parsed"))
    with pytest.raises(KeysFileError, match=f"is larger than {MOST_BYTES // 2**20} MiB"):
        read_keys(file)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in (
        (tmp_path / "none.yaml", "No such file or directory"),
        (tmp_path, "is not a file"),
        (Path("/dev/zero"), "is not a file"),
        (pipe, "is not a file"),
    ):
        with pytest.raises(KeysFileError, match=reason):
            read_keys(path)


def test_a_stamp_changes_with_all_that_may_change_what_is_read(tmp_path: Path) -> None:
    """As a mounted Secret does it: the name is a link into a folder, which is a link that is swapped."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.yaml").write_text("same size")
    (tmp_path / "data").symlink_to("one")
    path = tmp_path / "keys.yaml"
    path.symlink_to("data/keys.yaml")
    seen = [stamp(path)]
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "data")
    seen.append(stamp(path))
    path.chmod(0)
    seen.append(stamp(path))
    (tmp_path / "data").unlink()
    seen.append(stamp(path))
    assert len(set(seen)) == 4
