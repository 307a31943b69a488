"""A log is for those who read it; whether anybody can is not the program's affair."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import pytest

PROGRAM = """
import structlog
from headwater.logs import configure_logging
configure_logging("info")
log = structlog.get_logger()
for number in range(100):
    log.info("a line", number=number, text="x" * 1000)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("an error")
print("went on")
"""


@contextmanager
def full_disk() -> Iterator[IO[str]]:
    with Path("/dev/full").open("w") as full:
        yield full


@contextmanager
def nobody_reads() -> Iterator[IO[str]]:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        yield pipe


@pytest.mark.parametrize("place", [full_disk, nobody_reads])
def test_a_log_that_cannot_be_written_ends_no_program(place: Callable[[], AbstractContextManager[IO[str]]]) -> None:
    with place() as stderr:
        done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert (done.stdout, done.returncode) == ("went on\n", 0)
