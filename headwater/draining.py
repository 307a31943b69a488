"""A server that ends without cutting its answers. Needs uvicorn, of the [engine] extra."""

from collections.abc import Callable
from types import FrameType

import uvicorn


class DrainingServer(uvicorn.Server):
    """uvicorn, but the first signal only calls `drain`, which sets `should_exit` in the end; the second one ends it."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            self._drain()
        else:
            self.should_exit = self.force_exit = True
