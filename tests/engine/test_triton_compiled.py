"""Triton's compiler takes every kernel. Its interpreter runs much that is none; to compile, no GPU need be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "engine" / "headwater_engine" / "kernels" / "triton"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs what is compiled for it in all other tests")
def test_every_kernel_can_be_compiled_for_chips_that_are_not_here() -> None:
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.engine.compile_kernels"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    written = {
        line.removeprefix("def ").split("(")[0]
        for path in KERNELS.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
    assert written == set(done.stdout.split())
