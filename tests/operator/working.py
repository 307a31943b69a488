"""What happens while the operator works."""

import asyncio
from collections.abc import Awaitable, Callable

from headwater_operator.reconcile.loop import ReconcileLoop


async def while_it_works(loop: ReconcileLoop, scenario: Callable[[], Awaitable[None]]) -> None:
    await loop.load()
    working = asyncio.create_task(loop.run())
    try:
        await scenario()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
