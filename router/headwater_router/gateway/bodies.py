"""The memory that clients' requests take: counted over all connections, and refused before it is too much.

What counts is what has come, not what was announced: a head that announces 32 MiB costs its sender nothing, and a few
of them would keep everybody else out.
"""

from headwater.openai.errors import ServiceUnavailableError


class BodyBudget:
    """Bytes of requests that are being read, wait for their turn, or are being answered and not dropped yet."""

    __slots__ = ("in_flight", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0

    def fits(self, count: int) -> bool:
        return self.in_flight + count <= self.limit

    def take(self, count: int) -> bool:
        """Count these, if there is room for them. Whoever took is to `give` back later."""
        if self.in_flight + count > self.limit:
            return False
        self.in_flight += count
        return True

    def give(self, count: int) -> None:
        self.in_flight -= count
        assert self.in_flight >= 0, "more was given back than was taken"


def out_of_memory() -> ServiceUnavailableError:
    return ServiceUnavailableError(
        "The router holds as many bytes of requests as it may.", code="overloaded", retry_after=1
    )
