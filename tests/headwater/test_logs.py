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

ONE_LINE = """
import structlog
from headwater.logs import configure_logging
configure_logging("info")
structlog.get_logger().info("a line")
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


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="only Linux has pipes that keep writes apart")
def test_each_line_is_one_write_so_that_no_other_process_writes_into_it() -> None:
    """Also where Python buffers nothing, as in our images."""
    reader, writer = os.pipe2(os.O_DIRECT)
    with os.fdopen(reader, "rb", buffering=0) as lines, os.fdopen(writer, "wb") as stderr:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        subprocess.run([sys.executable, "-c", ONE_LINE], stderr=stderr, env=environment, check=True)
        stderr.close()
        line = lines.read(4096)
    assert line.startswith(b"{") and line.endswith(b"}\n")
