"""What is appended past the page cache is what would have been written through it, whatever the disk says meanwhile."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.fetch import appending
from headwater.fetch.appending import Appending

Write = Callable[[int, memoryview, int], int]
BYTES = os.urandom(64 * 1024)
PART = st.lists(st.integers(0, 20_000), max_size=6)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few blocks are much."""
    memory = appending._Memory()
    memory.buffer = memory.buffer[:16384]
    monkeypatch.setattr(appending, "_BUFFER", 16384)
    monkeypatch.setattr(appending, "_SMALL", 4096)
    monkeypatch.setattr(appending, "_memory", memory)


def appended(path: Path, parts: list[list[int]], there: int = 0) -> bytes:
    """What should be in it then."""
    path.write_bytes(content := BYTES[:there])
    file = Appending(path)
    file.size = there
    for number, sizes in enumerate(parts):
        pieces = [BYTES[number + at : number + at + size] for at, size in enumerate(sizes)]
        file.write(pieces)
        content += b"".join(pieces)
        assert file.size == len(content) == path.stat().st_size
    file.close()
    return content


@settings(max_examples=200, deadline=None)
@given(st.lists(PART, max_size=6), st.integers(0, 10_000))
def test_pieces_of_any_size_follow_one_another(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], there: int
) -> None:
    path = tmp_path_factory.mktemp("file") / "part"
    assert appended(path, parts, there) == path.read_bytes()


def past_the_cache(write: Write, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has `write` stand for what goes past the cache; the descriptors with which it was called."""
    called, plain = [], os.pwrite

    def pwrite(descriptor: int, data: memoryview, at: int) -> int:
        if descriptor not in direct:
            return plain(descriptor, data, at)
        called.append(descriptor)
        assert at % 4096 == len(data) % 4096 == 0
        return write(descriptor, data, at)

    direct: list[int] = []

    def opened(path: Path) -> int:
        direct.append(os.open(path, os.O_WRONLY))
        return direct[-1]

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(appending, "_opened_direct", opened)
    return called


def test_a_file_system_that_refuses_only_when_it_is_written_to_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, data: memoryview, at: int) -> int:
        raise OSError(errno.EINVAL, "no")

    called = past_the_cache(refuse, monkeypatch)
    assert appended(tmp_path / "part", [[20_000], [20_000]]) == (tmp_path / "part").read_bytes()
    assert len(called) == 1


@pytest.mark.parametrize("most", [4096, 5000, 100])
def test_a_disk_that_takes_less_than_it_is_given_gets_the_rest(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.pwrite
    past_the_cache(lambda descriptor, data, at: plain(descriptor, data[:most], at), monkeypatch)
    assert appended(tmp_path / "part", [[20_000], [3], [20_000, 7]]) == (tmp_path / "part").read_bytes()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview, at: int) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    past_the_cache(full, monkeypatch)
    with pytest.raises(OSError, match="no space"):
        appended(tmp_path / "part", [[20_000]])


def test_large_appends_leave_little_in_the_cache(tmp_path: Path) -> None:
    """Where there is another way: in the folder of the tests there need be none."""
    file = Appending(tmp_path / "part")
    if file._direct is None:
        pytest.skip("the file system has no O_DIRECT")
    for _ in range(4):
        file.write([BYTES[:40_001]])
    assert file.cached < 4 * 4096
    assert file.size == 4 * 40_001
    file.close()
