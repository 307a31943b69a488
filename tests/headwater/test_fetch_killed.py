"""`headwater fetch` is killed at every step, and started again: it ends as if it had not been.

A step is a call that changes the disk. From the one at which a run is killed on, nothing happens any more; a write
happens by half. What is put to the disk with fsync is not looked at: the file system does not lose what was written.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from headwater.fetch import fetch
from headwater.fetch.errors import FetchError
from headwater.fetch.manifest import verify
from tests.headwater.archives import TAR, archive
from tests.headwater.fake_stores import (
    Answering,
    Break,
    InProcess,
    RegistryStore,
    Store,
    hub,
    names_in,
    registry,
)

RUNS = 1000
STEPS = ("mkdir", "rename", "unlink", "rmdir", "write", "ftruncate", "open", "fsync")
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(250)) * 40, "tokenizer/vocab.txt": b"a\nb\n"}
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A disk would be most of the time."""


class Killed(BaseException):
    pass


class Life:
    """Of one run: how many steps it has left."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @contextmanager
    def lived(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, self._step(name, getattr(os, name)))
            yield

    def _step(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and name == "write":
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if self.left <= 0:
                raise Killed
            return None if name == "fsync" else call(*arguments, **options)

        return step


def hub_of_files() -> tuple[Store, Answering, str]:
    return Store(dict(FILES) | {"a/b.json": b"[]", "empty.txt": b""}), hub, "hf://owner/model"


def path_of_its_own_name() -> tuple[Store, Answering, str]:
    files = {f"model/{name}": content for name, content in FILES.items()} | {"model/model/x.json": b"1"}
    return Store(files), hub, "hf://owner/model/model"


def image() -> tuple[Store, Answering, str]:
    store = RegistryStore({})
    files = {f"models/{name}": content for name, content in FILES.items()}
    first, second = archive(files | {"models/models/config.json": b"1"}), archive({"models/config.json": b"{ }"})
    store.push("1.0", (first, TAR), (second, TAR), (first, TAR), (second, TAR))
    return store, registry, "oci://127.0.0.1/team/model:1.0"


@pytest.mark.slow
@pytest.mark.usefixtures("alone", "waits", "one_thread")
@pytest.mark.parametrize("made", [hub_of_files, path_of_its_own_name, image])
def test_whoever_is_killed_at_any_step_ends_as_if_he_had_not_been(
    made: Callable[[], tuple[Store, Answering, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, answering, source = made()
    transport = InProcess(store, answering)
    monkeypatch.setenv("HF_ENDPOINT", store.url)
    monkeypatch.setattr("headwater.fetch.make_client", transport.client)
    monkeypatch.setattr("headwater.fetch.download.PIECE", 3000)
    chance, runs = random.Random(20), 0
    with TemporaryDirectory(dir=MEMORY) as folder:
        undisturbed = Life(10**9)
        with undisturbed.lived():
            fetch(source, Path(folder) / "m")
        expected, steps = names_in(Path(folder) / "m"), 10**9 - undisturbed.left
    for first in range(1, 10**6):
        if runs >= RUNS // 3:
            break
        with TemporaryDirectory(dir=MEMORY) as folder:
            if first % 2 and another_state_first(source, Path(folder), store, chance):
                continue
            runs += lives(source, Path(folder), store, first % (steps + 3) + 1, chance)
            assert names_in(Path(folder) / "m") == expected
            assert sorted(path.name for path in Path(folder).iterdir()) == ["m"], "nothing is left over"
            verify(Path(folder) / "m")


def another_state_first(source: str, folder: Path, store: Store, chance: random.Random) -> bool:
    """One is killed while the source is another one still; True if that came to its end."""
    now = store.files
    if not isinstance(store, RegistryStore):
        store.files = {name: content[::-1] for name, content in now.items()} | {"old/a.json": b"1", "old.json": b"2"}
    try:
        with Life(chance.randrange(1, 60)).lived():
            fetch(source, folder / "m")
    except (Killed, FetchError):  # the other state may have no such path
        pass
    finally:
        store.files = now
    return (folder / "m").exists()


def lives(source: str, folder: Path, store: Store, steps: int, chance: random.Random) -> int:
    """Until one is not killed. How many there were."""
    for run in range(1, 100):
        store.trouble = {"model.safetensors": [Break(chance.randrange(3000))] * chance.randrange(2)}
        try:
            with Life(steps if run < 4 else 10**9).lived():
                fetch(source, folder / "m")
            return run
        except Killed:
            steps = chance.randrange(1, 60)
    raise AssertionError("it never ends")
