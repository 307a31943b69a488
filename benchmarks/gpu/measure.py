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
L2_SEVERAL_TIMES = 256 << 20
"""Bytes to go through before the first are touched again: else it is the L2 cache that is measured."""


def seconds(call: Callable[[T], Any], sets: Sequence[T], replays: int = 15) -> float:
    """Median time of a call on one of `sets`, where calls on all of them follow one another in a CUDA graph.

    A graph has no gaps between launches, so that this is the GPU's time and not Python's. Give several sets of inputs,
    so that no call finds its own in the cache.
    """
    for inputs in sets[:2]:
        call(inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in sets:
            call(inputs)
    for _ in range(3):
        graph.replay()
    return median_of(graph.replay, replays) / len(sets)


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
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copying = median_of(lambda: target.copy_(source), 20)
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    multiplying = median_of(lambda: a @ b, 20)
    return Ceilings(2 * source.numel() / copying, 2 * size**3 / multiplying)


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
