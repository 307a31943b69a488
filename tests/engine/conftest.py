"""An engine process to tell what to say, and the server before it.

Where there is no GPU, Triton's kernels run in its interpreter. It reads the variable as it is imported."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import torch

from tests.engine.fake_engine import FakeEngine, fake_engine
from tests.engine.front import serving, until

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    async with fake_engine(tmp_path) as engine:
        yield engine


@pytest.fixture
async def http(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server that is ready, before `engine`."""
    async with serving(engine) as http:
        await engine.be_ready()
        await until(http, "/ready", 200)
        yield http
