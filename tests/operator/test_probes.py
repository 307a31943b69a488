"""What the operator tells of itself over HTTP is what its loop says at that moment, to whoever asks."""

import contextlib
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import httpx
import pytest

from headwater.lag import LoopLag
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.probes import serve_probes
from headwater_operator.reconcile.loop import ReconcileLoop


@dataclass
class Told:
    """In place of the loop and of what measures it."""

    waiting: int = 0
    oldest: float = 0.0
    longest: float = 0.0
    computed: float = 0.0
    stuck_at: str | None = None
    metrics: OperatorMetrics = field(default_factory=OperatorMetrics)

    def stuck(self) -> str | None:
        return self.stuck_at


@contextlib.asynccontextmanager
async def serving(told: Told) -> AsyncIterator[httpx.AsyncClient]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    loop, lag = cast("ReconcileLoop", told), cast("LoopLag", told)
    async with (
        serve_probes("127.0.0.1", port, told.metrics, loop, lag),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client


async def value(client: httpx.AsyncClient, name: str) -> float:
    answer = await client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    found = re.search(rf"^headwater_operator_{name} (\S+)$", answer.text, re.MULTILINE)
    assert found, f"the page has no {name}"
    return float(found[1])


async def test_the_page_says_how_many_wait_and_for_how_long() -> None:
    told = Told(waiting=7, oldest=12.5)
    async with serving(told) as client:
        assert await value(client, "queue_depth") == 7
        assert await value(client, "queue_oldest_seconds") == 12.5
        told.waiting, told.oldest = 0, 0.0
        assert await value(client, "queue_depth") == 0
        assert await value(client, "queue_oldest_seconds") == 0


async def test_the_lag_is_on_every_page_and_goes_when_it_is_over() -> None:
    told = Told(longest=0.25, computed=0.03)
    async with serving(told) as client:
        assert await value(client, "loop_computing_seconds") == 0.03
        assert [await value(client, "loop_lag_seconds") for _ in range(3)] == [0.25] * 3
        told.longest = 0.01
        assert await value(client, "loop_lag_seconds") == 0.01


async def test_it_is_healthy_until_a_reconciliation_is_stuck_and_says_which() -> None:
    told = Told()
    async with serving(told) as client:
        assert (await client.get("/healthz")).status_code == 200
        told.stuck_at = "team/model"
        answer = await client.get("/healthz")
        assert answer.status_code == 500 and "team/model" in answer.text
        assert (await client.get("/readyz")).status_code == 200, "its end is the liveness probe's affair"
        told.stuck_at = None
        assert (await client.get("/healthz")).status_code == 200


async def test_nothing_is_served_any_more_afterwards() -> None:
    async with serving(Told()) as client:
        url = client.base_url
    async with httpx.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/healthz")
