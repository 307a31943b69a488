"""How much memory this process may have."""

import os
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")
_LIMITS: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Of a container, as it sees itself: control groups of version 2, and of version 1."""


def memory_limit(cgroup: Path = _CGROUP) -> int:
    """Bytes: the container's limit, or all that the machine has where there is none."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _LIMITS:
        try:
            limits.append(int((cgroup / name).read_text()))
        except (OSError, ValueError):  # There is none, or it says "max".
            continue
    return min(limits)
