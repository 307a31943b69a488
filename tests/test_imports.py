"""A router needs no torch: its image has none."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "triton", "numpy", "kopf", "kubernetes")


@pytest.mark.parametrize("module", ["headwater.cli", "headwater.backends", "headwater.pick", "headwater_router.app"])
def test_nothing_heavy_is_imported_with(module: str) -> None:
    program = f"import {module}, sys; print(*(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
