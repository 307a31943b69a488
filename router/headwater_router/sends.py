"""How often one request was sent, over all its tries, and which of these were lost.

It is counted where bytes go out and connections break (`upstream.connection`), and nowhere else. What follows from it
is in `dispatch.retries`.
"""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Sends:
    """Made with the request, and handed to whoever sends it."""

    made: int = 0
    losses: tuple[int, ...] = ()
    """Of the sends, counted from 1, those whose connection ended before the answer did."""

    def sent(self) -> None:
        self.made += 1

    def lost(self) -> None:
        """The connection broke that it was sent over last."""
        self.losses += (self.made,)

    @property
    def broke_off(self) -> bool:
        """The last one was lost."""
        return bool(self.losses) and self.losses[-1] == self.made

    @property
    def had_one_more(self) -> bool:
        """It was sent again after a loss."""
        return bool(self.losses) and self.losses[0] < self.made
