"""What `headwater pick` prints is accepted by the API server."""

import re
import shlex
import subprocess
import sys

import pytest

from e2e.harness import ROOT, kubectl

COMMANDS = sorted(set(re.findall(r"`(--model [^`]+)`", (ROOT / "docs" / "choosing.md").read_text())))


@pytest.mark.parametrize("flags", COMMANDS)
def test_the_yaml_of_every_workload_in_the_docs_is_accepted(flags: str) -> None:
    command = [sys.executable, "-m", "headwater", "pick", *shlex.split(flags), "--yaml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode == 1:
        assert re.search(r"`refused|refused: ", _row(flags)), "only what the table says is refused is"
        return
    assert result.returncode == 0, result.stderr
    assert "created (server dry run)" in kubectl("apply", "--dry-run=server", "-f", "-", input=result.stdout)


def _row(flags: str) -> str:
    lines = (ROOT / "docs" / "choosing.md").read_text().splitlines()
    return next(line for line in lines if f"`{flags}`" in line)
