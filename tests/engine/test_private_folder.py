"""The folder of an engine's sockets is gone with it, also where it was killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from headwater_engine.server.private_folder import private_folder

_OWNER = """
import sys
from headwater_engine.server.private_folder import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def owner() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", _OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    hour_ago = time.time() - 3600
    os.utime(folder, (hour_ago, hour_ago))
    return process, folder


def test_what_a_killed_owner_left_is_removed_by_the_next_and_nothing_else_is() -> None:
    killed, leftover = owner()
    living, in_use = owner()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert leftover.exists()
    with private_folder() as mine:
        assert mine.stat().st_mode & 0o777 == 0o700
        assert not leftover.exists()
        assert in_use.exists()
    assert not mine.exists()
    living.communicate()
    assert not in_use.exists()


def test_a_folder_whose_owner_may_just_be_making_it_stays(tmp_path: Path) -> None:
    young = tmp_path / "headwater-engine-young"
    young.mkdir()
    with private_folder():
        assert young.exists()


def test_what_only_looks_like_one_does_no_harm(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "headwater-engine-link").symlink_to(elsewhere)
    (tmp_path / "headwater-engine-file").touch()
    hour_ago = time.time() - 3600
    for path in (elsewhere, tmp_path / "headwater-engine-file"):
        os.utime(path, (hour_ago, hour_ago))
    with private_folder():
        assert elsewhere.exists()


def test_a_folder_with_a_long_name_leaves_room_for_a_sockets_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with private_folder() as folder:
        assert len(os.fsencode(folder / "requests")) < 107
