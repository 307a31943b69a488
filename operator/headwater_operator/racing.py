"""Several works of which the first to end ends all."""

import asyncio
from typing import Any


async def first(*works: Any) -> bool:
    """Run them until the first ends; the others are cancelled and waited for. Says whether it was the first of them.

    Raises what that one raised.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return tasks[0] in done
