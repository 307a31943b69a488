"""A file on its way to the disk: the disk is busy while bytes come, and what it refuses is never lost."""

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from headwater.fetch import appending, growing
from headwater.fetch.growing import Growing
from headwater.fetch.promise import Promise

MIB = b"x" * 2**20


@pytest.fixture(autouse=True)
def through_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the file system has no other way."""
    monkeypatch.setattr(growing, "_FLUSHED", 2 * 2**20)
    monkeypatch.setattr(appending, "_opened_direct", lambda path: None)


async def test_the_disk_begins_before_all_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    file = Growing(tmp_path / "part", Promise(None))
    for _ in range(4):
        await file.append([MIB])
        if file._flushing is not None:
            file._flushing.result(60)
    assert flushed == [2 * 2**20, 4 * 2**20]
    file.close()


async def test_what_the_disk_refused_meanwhile_is_no_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fdatasync", full)
    file = Growing(tmp_path / "part", Promise(None))
    await file.append([MIB, MIB])
    with pytest.raises(OSError, match="broken"):
        await file.finish("model")
    file.close()


async def test_nothing_is_written_any_more_once_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go to whichever file has the descriptor by then."""
    file, begun, go_on = Growing(tmp_path / "part", Promise(None)), threading.Event(), threading.Event()
    write, written = os.pwrite, 0

    def slow(descriptor: int, data: memoryview, at: int) -> int:
        nonlocal written
        begun.set()
        go_on.wait()
        written += 1
        return write(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", slow)
    growing = asyncio.create_task(file.append([MIB, MIB]))
    await asyncio.to_thread(begun.wait)
    growing.cancel()
    try:
        await asyncio.sleep(0.01)
        assert not growing.done()
    finally:
        go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await growing
    assert written == 2
    file.close()
