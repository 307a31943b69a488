"""What is to be short: three predictions of a request at an endpoint are weighed against one another.

| objective | until its first token | from there to its last | what it takes from the others there |
|---|---|---|---|
| latency | 1 | 1 | 1 |
| first-token | 1 | 0.1 | 0.1 |
| throughput | 0.25 | 0.25 | 1 |
"""

from enum import StrEnum
from typing import Final, NamedTuple


class Objective(StrEnum):
    LATENCY = "latency"
    """The last token of all requests together."""
    FIRST_TOKEN = "first-token"
    """Its own first token, as a chat is felt."""
    THROUGHPUT = "throughput"
    """As much as possible of all, however long one request takes: batch work."""


class Weights(NamedTuple):
    first: float
    rest: float
    others: float


WEIGHTS: Final = {
    Objective.LATENCY: Weights(1.0, 1.0, 1.0),
    Objective.FIRST_TOKEN: Weights(1.0, 0.1, 0.1),
    Objective.THROUGHPUT: Weights(0.25, 0.25, 1.0),
}
