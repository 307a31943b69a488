"""What the operator tells of itself over HTTP: /metrics, and whether it still gets anywhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from headwater.lag import LoopLag
from headwater_operator.metrics import OperatorMetrics
from headwater_operator.reconcile.loop import ReconcileLoop


@contextlib.asynccontextmanager
async def serve_probes(
    host: str, port: int, metrics: OperatorMetrics, loop: ReconcileLoop, lag: LoopLag
) -> AsyncIterator[None]:
    """Serve them while inside. Raises OSError where the address is taken."""

    async def prometheus(_: web.Request) -> web.Response:
        metrics.queue_depth.set(loop.waiting)
        metrics.queue_oldest.set(loop.oldest)
        metrics.loop_lag.set(lag.longest)
        metrics.loop_computing.set(lag.computed)
        # Of a thousand ModelDeployments the page takes a while to write.
        page = await asyncio.to_thread(generate_latest, metrics.registry)
        return web.Response(body=page, headers={"content-type": CONTENT_TYPE_LATEST})

    async def health(_: web.Request) -> web.Response:
        stuck = loop.stuck()
        return web.Response(status=500, text=f"no end to be seen: {stuck}\n") if stuck else web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        # One that waits for the Lease is as ready as it can be: it is there to take over.
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", prometheus), web.get("/healthz", health), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
