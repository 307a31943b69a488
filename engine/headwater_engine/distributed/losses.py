"""Which errors of torch.distributed say that another rank is out of reach. Those become a sentence, and no others.

Gloo raises plain RuntimeErrors, as half of torch does, and NCCL one kind of error for all that goes wrong. What tells
them apart is the text: the place in Gloo's sources where bytes are moved, or NCCL's name for it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch.distributed as dist

from headwater_engine.errors import LostRankError

_GLOO: Final = re.compile(
    r"^Gloo connectFullMesh failed"
    r"|^\[(?!enforce)[^]]*gloo/[^]]*\]"  # what it asserts is no matter of the network,
    r"|gloo/transport/tcp/device\.cc"  # but for the device that it looks for
)
_NCCL: Final = re.compile(r"ncclSystemError|ncclRemoteError|ncclUniqueId|socket interface")
_PLACE: Final = re.compile(r"\[[^]]*/[^]]*\] ?")
"""In sources."""


@contextmanager
def losses_named() -> Iterator[None]:
    """Raises LostRankError in place of an error that says so. Whatever else is raised stays what it is."""
    try:
        yield
    except (RuntimeError, TimeoutError) as error:
        if not _is_loss(error):
            raise
        raise LostRankError(_PLACE.sub("", str(error).splitlines()[0]).rstrip(".")) from error


def _is_loss(error: RuntimeError | TimeoutError) -> bool:
    match error:
        case TimeoutError() | dist.DistNetworkError():  # of who leaves addresses
            return True
        case dist.DistBackendError():
            return _NCCL.search(str(error)) is not None
    return type(error) is RuntimeError and _GLOO.search(str(error)) is not None
