"""Compiles Triton's kernels for GPUs that are not there; without TRITON_INTERPRET, `python -m` this.

Where kernels would be launched they are compiled, down to what runs on an A100, an L4 or an H100, and nothing runs. It
ends with an error where one cannot be, or wants more shared memory than a program has there. Prints kernels by name.

Of attention there are more kinds than anybody wants to wait for. What is compiled are few in which any two properties
come together once, and all other kernels for an H100. `--all`: all 4,800 kinds, and all for every chip, for hours.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import combinations, product
from typing import Any, NamedTuple

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


class Chip(NamedTuple):
    capability: int
    processors: Processors


A100, L4, H100 = (
    Chip(80, Processors(108, 166_912)),
    Chip(89, Processors(58, 101_376)),
    Chip(90, Processors(132, 232_448)),
)
BATCHES = {
    "decode in parts": ([5000, 3000], [1, 1]),
    "decode": ([40, 30], [1, 1]),
    "prompts": ([700, 30], [30, 7]),
}
"""Contexts, and how many of each are new."""


class Case(NamedTuple):
    """A kind of attention."""

    chip: Chip
    dim: int
    group: int
    dtype: torch.dtype
    eight_bits: bool
    """Of keys and values."""
    batch: str
    window: bool
    softcap: bool
    sinks: bool
    shared: bool
    """Prefixes, in batches that decode."""

    @property
    def is_one(self) -> bool:
        if self.eight_bits and self.chip is A100:  # which has no numbers of 8 bits
            return False
        return not self.shared or ("decode" in self.batch and not self.window)


BOTH = (False, True)
EVERY = [
    case
    for values in product(
        (A100, L4, H100),
        (64, 80, 96, 128, 256),
        (1, 7, 16),
        (torch.bfloat16, torch.float16),
        BOTH,
        BATCHES,
        *[BOTH] * 4,
    )
    if (case := Case(*values)).is_one
]


def covering(cases: Sequence[Case]) -> list[Case]:
    """Few of them, in which all pairs of properties are that are in any."""
    pairs = {case: set(combinations(enumerate(case), 2)) for case in cases}
    missing, found = set[Any]().union(*pairs.values()), []
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        found.append(best)
    return found


class Absent:
    """A driver of Triton's for GPUs of which only the kind is known."""

    chip = H100

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip.capability, 32)

    def get_current_device(self) -> int:
        """Triton keeps what it has compiled by the device, and one device has one kind."""
        return self.chip.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: JITFunction, grid: tuple[int, ...]) -> Callable[..., None]:
    def launch(*args: Any, **kwargs: Any) -> None:
        compiled = kernel.run(*args, grid=grid, warmup=True, **kwargs)
        assert compiled.metadata.shared <= Absent.chip.processors.shared_memory, (kernel.fn.__name__, compiled.metadata)
        print(kernel.fn.__name__, flush=True)

    return launch


def attend(case: Case) -> None:
    """With all that may lie between a projection and attention."""
    Absent.chip = case.chip
    kernels = TritonKernels(case.dtype, torch.device("cpu"), torch.float8_e4m3fn if case.eight_bits else None)
    kernels._processors = case.chip.processors
    contexts, new = BATCHES[case.batch]
    batch = ragged(contexts, new)
    if case.shared:
        numbers = torch.from_numpy(as_numbers([], len(contexts)))
        batch.prefixes = as_prefixes(numbers, len(contexts))
    dim, heads = case.dim, 2 * case.group
    cache = kernels.allocate(int(batch.block_tables.max()) + 1, CacheSpec(2, dim, dim))
    table = RotaryTable(random(max(contexts), dim // 2), random(max(contexts), dim // 2))
    rules = AttentionRules(
        0.1,
        window=100 if case.window else None,
        softcap=30.0 if case.softcap else None,
        sinks=random(heads).to(case.dtype) if case.sinks else None,
        rope=table,
        norms=HeadNorms(random(dim).to(case.dtype), random(dim).to(case.dtype), 1e-5),
    )
    kernels.attend(*views(kernels, sum(new), heads, 2, dim), cache, batch, rules)


def main() -> None:
    driver.set_active(Absent())
    JITFunction.__getitem__ = compile_only
    everything = "--all" in sys.argv
    for case in EVERY if everything else covering(EVERY):
        try:
            attend(case)
        except BaseException as error:
            error.add_note(str(case))
            raise
    for chip in (A100, L4, H100) if everything else (H100,):
        Absent.chip = chip
        compile_others()


def compile_others() -> None:
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
