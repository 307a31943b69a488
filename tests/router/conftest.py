"""A cluster to route in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.cluster import ApiServer, api_server


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    """An API server that KUBECONFIG leads to."""
    async with api_server() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path)))
        yield running
