"""Memory: how many KV blocks there is room for, and what freed tensors become."""

import ctypes
from pathlib import Path
from typing import NamedTuple

from headwater_engine.config import EngineSettings
from headwater_engine.errors import KVCacheSizeError
from headwater_engine.kernels.interface import BLOCK_SIZE

GIB = 1 << 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process can still take without swapping, a container's limit included.

    Cached files count as free, such as those of the weights that were just read: the kernel gives them up.
    """
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    limit, used, stat = (_CGROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        counts = dict(line.split() for line in stat.read_text().splitlines())
        cached = int(counts["inactive_file"]) + int(counts["active_file"])
        available = min(available, max(0, int(text) - int(used.read_text()) + cached))
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


class Room(NamedTuple):
    """Memory in bytes, of the device that holds the KV cache."""

    free: int
    share: int
    """What the KV cache takes where no setting says how much. It may be less than nothing."""
    footprint: "Footprint | None" = None
    """What it was worked out from, on a GPU."""


class Footprint(NamedTuple):
    """What there is of a GPU's memory, and what goes where, in bytes."""

    total: int
    utilization: float
    """Of the total, what may be used."""
    weights: int
    others: int
    """What CUDA itself has, and other processes."""
    step: int
    """What a step takes, at most."""
    graphs: int
    """What recorded steps keep."""

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.others + self.step + self.graphs

    def room(self) -> Room:
        return Room(self.total - self.fixed, int(self.total * self.utilization) - self.fixed, self)

    def shortfall(self, kv: int, what: str) -> str:
        """That the model does not fit with `kv` bytes of KV cache, which are `what`: the arithmetic."""
        parts = (
            (self.weights, "of weights"),
            (kv, f"of KV for {what}"),
            (self.step, "for the largest step"),
            (self.graphs, "for recorded steps"),
            (self.others, "that CUDA and others have"),
        )
        needed = ", + ".join(f"{size / GIB:.2f} GiB {name}" for size, name in parts if size)
        way = (
            "Lower --max-model-len, --max-batched-tokens or --max-num-seqs, raise --gpu-memory-utilization, or record "
            "no steps (--enforce-eager)."
        )
        if self.weights + self.others > self.total * self.utilization:
            way = "Share it among more GPUs (--tensor-parallel-size), or take larger ones."
        return (
            f"The model does not fit: {needed} = {(self.fixed + kv) / GIB:.2f} GiB > {self.total / GIB:.2f} GiB x "
            f"{self.utilization:g} = {self.total * self.utilization / GIB:.2f} GiB. {way}"
        )


def room_on_cpu(ranks: int = 1) -> Room:
    """To be asked once the weights are loaded; `ranks` on this machine ask at the same time."""
    free = available_memory() // ranks
    return Room(free, min(free // 4, 4 * GIB // ranks))


def count_blocks(settings: EngineSettings, bytes_per_block: int, max_model_len: int, room: Room) -> int:
    """Blocks of the KV cache: as the settings say, else what `room` has for it.

    Raises KVCacheSizeError where not even one request of a single block fits, on a GPU one of --max-model-len, or the
    settings say more than is free: all of it is taken at once, and on a CPU the kernel would end the process.
    """
    free = room.free
    blocks = settings.num_blocks or _blocks_of_budget(settings, bytes_per_block, max_model_len, room)
    if blocks * bytes_per_block > free:
        raise KVCacheSizeError(
            f"The KV cache would take {blocks * bytes_per_block / GIB:.3f} GiB, and {max(0, free) / GIB:.3f} GiB are "
            "free: free some memory, or lower --kv-cache-gib or --num-blocks."
        )
    return blocks


def check_fits(settings: EngineSettings, bytes_per_block: int, footprint: Footprint) -> None:
    """Before weights are loaded, of which `footprint` knows how many there will be, and nothing of steps.

    Raises KVCacheSizeError where they leave no room for one request on a GPU.
    """
    least, tokens = _least(settings, bytes_per_block)
    # Settings that say how much KV there is may go beyond what is to be used, and never beyond what there is.
    told = settings.num_blocks is not None or settings.kv_cache_gib is not None
    if footprint.fixed + least > footprint.total * (1 if told else footprint.utilization):
        raise KVCacheSizeError(footprint.shortfall(least, f"one request of {tokens:,} tokens"))


def _least(settings: EngineSettings, bytes_per_block: int) -> tuple[int, int]:
    """Bytes of one request, and its tokens: what there must be room for."""
    tokens = settings.max_model_len or BLOCK_SIZE
    return max(2, -(-tokens // BLOCK_SIZE)) * bytes_per_block, tokens


def _blocks_of_budget(settings: EngineSettings, bytes_per_block: int, max_model_len: int, room: Room) -> int:
    ranks = settings.tensor_parallel_size
    budget = room.share if settings.kv_cache_gib is None else int(settings.kv_cache_gib * GIB / ranks)
    if room.footprint is not None and settings.kv_cache_gib is None:
        least, tokens = _least(settings, bytes_per_block)
        if budget < least:
            raise KVCacheSizeError(room.footprint.shortfall(least, f"one request of {tokens:,} tokens"))
    # More than all sequences at their longest, and as much again for reuse, would never be touched.
    useful = 2 * settings.max_num_seqs * -(-max_model_len // BLOCK_SIZE)
    blocks = min(budget // bytes_per_block, useful)
    if blocks < 2:
        raise KVCacheSizeError(
            f"The KV cache needs {2 * bytes_per_block / GIB:.3f} GiB for two blocks of {BLOCK_SIZE} tokens, and "
            f"{budget / GIB:.3f} GiB are there: free some memory, or set --kv-cache-gib."
        )
    return int(blocks)
