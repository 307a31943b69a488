"""What goes wrong when weights are fetched.

FetchError
├── ChangedError        the source is another one than a moment ago: list it again
├── DifferentError      an answer is of other bytes than those that came before: begin the file anew
├── DamagedError        all came, and it is not what was promised
└── TransientError      may pass: try again
"""


class FetchError(Exception):
    """The weights cannot be had. The message is one sentence or two, and says what to do."""


class ChangedError(FetchError):
    """What was listed is not there any more."""


class DifferentError(FetchError):
    """What has come of a file must not be followed by this answer."""


class DamagedError(FetchError):
    """A file does not have the digest, or the size, that its source says it has."""


class TransientError(FetchError):
    """The same may work in a while."""

    def __init__(self, message: str, after: float | None = None, *, nameless: bool = False) -> None:
        super().__init__(message)
        self.after = after
        """Seconds that the server asked to wait."""
        self.nameless = nameless
        """Nobody knows the server's name: there is no network, or the name is wrong."""
