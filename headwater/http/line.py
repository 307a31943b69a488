"""A line of those who found no room: first come, first served, each for as long as its patience lasts."""

import asyncio
from collections.abc import Callable


class NoRoomError(Exception):
    """There was no room in time."""


class Line:
    """Whoever owns it says whether there is room, and counts who takes it."""

    def __init__(self, has_room: Callable[[], bool], take: Callable[[], None], give: Callable[[], None]) -> None:
        """`take` is called for one who gets room here, `give` for one who left in that very moment."""
        self._has_room = has_room
        self._take = take
        self._give = give
        self._waiting: dict[asyncio.Future[None], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, patience: float) -> None:
        """Until there is room, after all who wait already. Raises NoRoomError after `patience` seconds."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[granted] = None
        try:
            async with asyncio.timeout(patience):
                await granted
        except BaseException as error:
            self._waiting.pop(granted, None)
            if granted.done() and not granted.cancelled():
                self._give()
            if isinstance(error, TimeoutError):
                raise NoRoomError from None
            raise

    def move(self) -> None:
        """There may be room again: let in whom it is for."""
        while self._waiting and self._has_room():
            granted = next(iter(self._waiting))
            del self._waiting[granted]
            if not granted.done():
                self._take()
                granted.set_result(None)
