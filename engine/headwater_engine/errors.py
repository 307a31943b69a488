"""Errors of the engine whose message is a sentence for the user."""


class DeviceError(Exception):
    """The GPU has failed, and no further call to it can work; the message says how. The process must end."""


class DeviceMemoryError(DeviceError):
    """The GPU has no memory for what it is to do; its cause is what torch says of that."""


class LoadError(Exception):
    """A model cannot be loaded; the message says what was found, and what to do about it where that is known."""


class KVCacheSizeError(Exception):
    """There is no memory for the KV cache; the message says what to change."""


class StartError(Exception):
    """This machine does not let the processes of an engine start; the message says why."""


class RankError(Exception):
    """A rank has failed on a step, and without it no other can go on; the message says how. The process must end."""


class LostRankError(RankError):
    """Another rank cannot be reached, or not any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"it has lost another rank: {reason}.")
        self.reason = reason


class RendezvousError(Exception):
    """The machines of an engine did not find one another; the message says which, and why."""
