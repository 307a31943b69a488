"""What goes wrong when weights are fetched.

FetchError
└── TransientError      may pass: try again
"""


class FetchError(Exception):
    """The weights cannot be had. The message is one sentence or two, and says what to do."""


class TransientError(FetchError):
    """The same may work in a while."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after
        """Seconds that the server asked to wait."""
