"""A cluster to route in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headwater_router.endpoints import deployments
from tests.router.cluster import ApiServer, api_server


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    """An API server that KUBECONFIG leads to. Its pods are on this machine's loopback, where no pod ever is."""
    monkeypatch.setattr(deployments, "may_be_a_pods", lambda address: True)
    async with api_server() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path)))
        yield running
