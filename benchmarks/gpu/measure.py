"""What every benchmark here needs: times without launch gaps, the ceilings, and results that outlive a cut-off run."""

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import triton

T = TypeVar("T")
OUT = Path(os.environ.get("OUT", "gpu-results"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""A CPU in the test that each script runs at all: a lent GPU's minutes are too few for a slip."""
L2_SEVERAL_TIMES = 256 << 20
"""Bytes to go through before the first are touched again: else it is the L2 cache that is measured."""
WARM = 3
"""Replays before those that are timed."""
COPIED, PRODUCT = 2 << 30, 8192
"""What the ceilings are found with: bytes, and rows of a matrix."""


def seconds(call: Callable[[T], Any], sets: Sequence[T], replays: int = 15) -> float:
    """Median time of a call on one of `sets`, where calls on all of them follow one another in a CUDA graph.

    A graph has no gaps between launches, so that this is the GPU's time and not Python's. Give several sets of inputs,
    so that no call finds its own in the cache.
    """
    for inputs in sets[:2]:
        call(inputs)

    def all_sets() -> None:
        for inputs in sets:
            call(inputs)

    replay = recorded(all_sets)
    for _ in range(WARM):
        replay()
    return median_of(replay, replays) / len(sets)


def recorded(run: Callable[[], Any]) -> Callable[[], Any]:
    """It as a CUDA graph; it has run before."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def median_of(call: Callable[[], Any], times: int) -> float:
    """Seconds, by CUDA events."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(times)]
    for begin, end in pairs:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def copies_of(size: int) -> int:
    """How many sets of inputs of `size` bytes to go round in."""
    return max(1, min(32, -(-L2_SEVERAL_TIMES // size)))


@dataclass(slots=True)
class Ceilings:
    """Of this machine, measured in this run."""

    bandwidth: float
    """Bytes read and written a second by a device-to-device copy."""
    bf16: float
    """Operations a second of a large product of random bfloat16 matrices."""


def ceilings() -> Ceilings:
    source = torch.empty(COPIED, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    copying = median_of(lambda: target.copy_(source), 20)
    a, b = (torch.randn(PRODUCT, PRODUCT, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    multiplying = median_of(lambda: a @ b, 20)
    return Ceilings(2 * source.numel() / copying, 2 * PRODUCT**3 / multiplying)


def machine() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    return {"gpu": name, "driver": driver, "torch": torch.__version__, "triton": triton.__version__}


class Report:
    """Rows of a table, kept in a file from the first one on."""

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        self._path = OUT / f"{name}.json"
        self._columns = columns
        self._content: dict[str, Any] = {"machine": machine(), "rows": []}
        OUT.mkdir(parents=True, exist_ok=True)
        print(f"{self._content['machine']}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)

    def note(self, **values: Any) -> None:
        self._content |= values
        self._write()

    def row(self, *cells: Any) -> None:
        self._content["rows"].append(dict(zip(self._columns, cells, strict=True)))
        print(f"| {' | '.join(f'{x:.3g}' if isinstance(x, float) else str(x) for x in cells)} |", flush=True)
        self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._content, indent=1))


class KernelTable:
    """Of kernels: what each achieves beside the ceilings, and beside another way to the same result."""

    def __init__(self) -> None:
        self._ceiling = ceilings()
        print(f"copy {self._ceiling.bandwidth / 1e9:.0f} GB/s, bf16 product {self._ceiling.bf16 / 1e12:.0f} TFLOP/s")
        self._report = Report("kernels", ("kernel", "µs", "achieved", "of the ceiling", "peer µs", "ratio"))
        self._report.note(bandwidth=self._ceiling.bandwidth, bf16=self._ceiling.bf16)

    def by_bandwidth(self, name: str, size: float, ours: float, theirs: float | None = None) -> None:
        """Of what waits for memory: `size` bytes that must move."""
        self._row(name, f"{size / ours / 1e9:.0f} GB/s", size / ours / self._ceiling.bandwidth, ours, theirs)

    def by_operations(self, name: str, operations: float, ours: float, theirs: float | None = None) -> None:
        """Of what computes."""
        self._row(name, f"{operations / ours / 1e12:.0f} TFLOP/s", operations / ours / self._ceiling.bf16, ours, theirs)

    def _row(self, name: str, achieved: str, share: float, ours: float, theirs: float | None) -> None:
        beside = (theirs * 1e6, theirs / ours) if theirs else ("–", "–")
        self._report.row(name, ours * 1e6, achieved, share, *beside)
