"""Compiles Triton's kernels for a GPU that is not there; without TRITON_INTERPRET, `python -m` this.

Where kernels would be launched they are compiled, down to what runs on an H100, and nothing runs. It ends with an error
where one cannot be, or wants more shared memory than a program has. Prints the kernels by name.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from msgspec.structs import replace
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.kernels.gpu import TritonKernels
from headwater_engine.kernels.interface import AttentionRules, CacheSpec, HeadNorms, RotaryTable
from headwater_engine.kernels.prefixes import as_numbers, as_prefixes
from headwater_engine.kernels.triton.all_reduce import Peers, sum_over_peers
from headwater_engine.kernels.triton.tiling import Processors
from headwater_engine.sampling.rows import SamplingRows
from headwater_engine.worker.inputs import Inputs
from headwater_engine.worker.seats import Seats
from tests.engine.batches import ragged, random, views
from tests.engine.sampling_case import batch_of, params

SHARED_MEMORY = 232_448
"""Bytes of a program, on an H100."""


class Absent:
    """A driver of Triton's for a GPU of which only the kind is known."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: JITFunction, grid: tuple[int, ...]) -> Callable[..., None]:
    def launch(*args: Any, **kwargs: Any) -> None:
        compiled = kernel.run(*args, grid=grid, warmup=True, **kwargs)
        assert compiled.metadata.shared <= SHARED_MEMORY, (kernel.fn.__name__, compiled.metadata)
        print(kernel.fn.__name__, flush=True)

    return launch


def attend(contexts: list[int], new: list[int], dim: int, kv_dtype: torch.dtype | None, *, shared: bool) -> None:
    """With all that may lie between a projection and attention."""
    kernels = TritonKernels(torch.bfloat16, torch.device("cpu"), kv_dtype)
    kernels._processors = Processors(132, SHARED_MEMORY)
    batch = ragged(contexts, new)
    if shared:
        numbers = torch.from_numpy(as_numbers([], len(contexts)))
        batch.prefixes = as_prefixes(numbers, len(contexts))
    cache = kernels.allocate(int(batch.block_tables.max()) + 1, CacheSpec(8, dim, dim))
    table = RotaryTable(random(max(contexts), dim // 2), random(max(contexts), dim // 2))
    rules = AttentionRules(0.1, rope=table, norms=HeadNorms(random(dim).bfloat16(), random(dim).bfloat16(), 1e-5))
    kernels.attend(*views(kernels, sum(new), 32, 8, dim), cache, batch, rules)


def main() -> None:
    driver.set_active(Absent())
    JITFunction.__getitem__ = compile_only
    attend([5000, 3000], [1, 1], 128, None, shared=True)
    attend([700, 300], [1, 300], 128, torch.float8_e4m3fn, shared=False)
    attend([700, 300], [1, 300], 256, None, shared=False)
    kernels = TritonKernels(torch.bfloat16, torch.device("cpu"))
    x = random(3, 4096).bfloat16()
    kernels.add_rms_norm(x, x.clone(), x[0], 1e-5)
    kernels.silu_mul(x)
    sum_over_peers(x, Peers(1, 4, torch.zeros(4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)))
    heads = random(3, 8, 128).bfloat16()
    kernels.write_cache(heads, heads, kernels.allocate(1, CacheSpec(8, 128, 128)), torch.tensor([4, 5, 6]))
    kernels.lookup(x)(torch.tensor([1, 2]), 1)
    asked = params(top_k=5, top_p=0.5, min_p=0.1, presence_penalty=1.0)
    seats, rows = Seats(1, 64, kernels.device), SamplingRows(100, kernels.device)
    seats.take(Step(1, [], [Seat(0, [1, 2], 0, asked)], [(0, [1])], [], []))
    rows.seat(0, asked, [1, 2])
    Inputs(kernels, seats, 64, None).lay_out([Span(0, 0, 2, 1, 0)], rows)
    kernels.sample(random(1, 128_256), batch_of(kernels, 128_256, [params()], []))
    everything = replace(asked, allowed_token_ids=(1, 2))
    with suppress(IndexError):  # of tokens that nobody has written
        kernels.sample_scored(random(1, 128_256), batch_of(kernels, 128_256, [everything], [1]), torch.tensor([0]), 20)


if __name__ == "__main__":
    main()
