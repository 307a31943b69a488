"""Which kernels the time of a step goes to, by torch's profiler: a random Llama-3.1-8B, decoding and reading prompts.

    PYTHONPATH=engine python benchmarks/gpu/breakdown.py

Decoding steps are replays of a CUDA graph, from tokens to the greedy choice. `share` is of the time between the first
kernel's begin and the last one's end; what is missing of 100 % is gaps between kernels.
"""

from collections import defaultdict
from collections.abc import Callable

import shapes
import torch
from measure import DEVICE, Report, recorded
from step import PROMPT, model_of
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

REPLAYS = 5
SHOWN = 14
"""Kernels of a step, those that take the longest."""
ACTIVITY, KIND = ProfilerActivity.CUDA, DeviceType.CUDA
BATCHES = [(f"decode {size} x {PROMPT}", [PROMPT] * size, [1] * size) for size in (1, 8, 32, 256)]
BATCHES += [("prompts 8 x 1024", [PROMPT] * 8, [PROMPT] * 8)]
"""(name, contexts, new tokens of each)"""


def kernels_of(run: Callable[[], object]) -> tuple[dict[str, list[float]], float]:
    """µs by kernel, of all its launches in one run, and µs from the first one's begin to the last one's end."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ACTIVITY]) as profiler:
        for _ in range(REPLAYS):
            run()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = defaultdict(list)
    spans = []
    for event in profiler.events():
        if event.device_type == KIND:
            times[event.name].append(event.time_range.elapsed_us())
            spans.append((event.time_range.start, event.time_range.end))
    return times, (max(end for _, end in spans) - min(start for start, _ in spans)) / REPLAYS


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    model, _ = model_of()
    most = max(shapes.blocks_of(contexts) for _, contexts, _ in BATCHES)
    caches = [shapes.kernels().allocate(most, spec) for spec in model.config.caches]
    report = Report("breakdown", ("step", "kernel", "launches", "µs each", "µs a step", "share %"))
    for name, contexts, new in BATCHES:
        batch, tokens = shapes.batch(contexts, new), shapes.random_tokens(sum(new))
        rows = None if max(new) == 1 else torch.tensor(new, device=DEVICE).cumsum(0) - 1

        def run(batch=batch, tokens=tokens, rows=rows) -> Tensor:
            return model.logits(model.forward(tokens, batch, caches, rows)).argmax(-1)

        step: Callable[[], object] = run
        if rows is None:
            run()
            step = recorded(run)
        times, whole = kernels_of(step)
        for kernel, each in sorted(times.items(), key=lambda item: -sum(item[1]))[:SHOWN]:
            count, total = len(each) / REPLAYS, sum(each) / REPLAYS
            report.row(name, kernel[:70], f"{count:g}", total / count, total, 100 * total / whole)
        busy = sum(sum(each) for each in times.values()) / REPLAYS
        report.row(name, "all", f"{sum(map(len, times.values())) / REPLAYS:g}", "–", whole, 100 * busy / whole)


if __name__ == "__main__":
    main()
