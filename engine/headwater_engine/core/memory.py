"""Memory: how many KV blocks there is room for, and what freed tensors become."""

import ctypes
from pathlib import Path

from headwater_engine.config import EngineSettings
from headwater_engine.kernels.interface import BLOCK_SIZE

GIB = 1 << 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


class KVCacheTooSmallError(Exception):
    """The KV cache has no room; the message says what to change."""


def available_memory() -> int:
    """Bytes that this process can still take without swapping, a container's limit included."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, max(0, int(text) - int(used.read_text())))
    return available


def keep_freed_memory() -> None:
    """Have malloc keep what tensors free for the next ones, where malloc is glibc's.

    Each layer of a step takes and frees tensors of a few MB. By default, that memory goes back to the kernel and comes
    anew, zeroed page by page: thousands of page faults in a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def count_blocks(settings: EngineSettings, bytes_per_block: int, max_model_len: int) -> int:
    """Blocks of the KV cache: as the settings say, else a quarter of the memory that is free, 4 GiB at most.

    Raises KVCacheTooSmallError where not even one request of a single block fits.
    """
    if settings.num_blocks is not None:
        return settings.num_blocks
    if settings.kv_cache_gib is not None:
        budget = int(settings.kv_cache_gib * GIB)
    else:
        budget = min(available_memory() // 4, 4 * GIB)
    # More than all sequences at their longest, and as much again for reuse, would never be touched.
    useful = 2 * settings.max_num_seqs * -(-max_model_len // BLOCK_SIZE)
    blocks = min(budget // bytes_per_block, useful)
    if blocks < 2:
        raise KVCacheTooSmallError(
            f"The KV cache needs {2 * bytes_per_block / GIB:.3f} GiB for two blocks of {BLOCK_SIZE} tokens, and "
            f"{budget / GIB:.3f} GiB are there: free some memory, or set --kv-cache-gib."
        )
    return int(blocks)
