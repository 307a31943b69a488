"""What each kernel achieves at the shapes of Llama-3.1-8B, beside this GPU's ceilings and torch's own kernel.

    PYTHONPATH=engine python benchmarks/gpu/kernels.py

Decoding attention and the small kernels wait for memory: bytes that must move, over the bandwidth of a copy. Attention
of prompts computes: operations of the causal half, over the rate of a large product. `peer` is torch's best
scaled_dot_product_attention, which reads contiguous keys and values where ours goes through block tables; beside the
small kernels, the same in plain torch operations.
"""

from functools import partial

import measure
import shapes
import torch
import torch.nn.functional as F
from floors import attention_bytes, causal_operations
from measure import Ceilings, Report, copies_of, seconds
from shapes import DIM, HEADS, HIDDEN, INTERMEDIATE, KV_BYTES, KV_HEADS
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SCALE = DIM**-0.5


def decode(report: Report, ceiling: Ceilings, sequences: int, context: int) -> None:
    kernels, contexts = shapes.kernels(), [context] * sequences
    batch, queries = shapes.batch(contexts, [1] * sequences), shapes.random_queries(sequences)
    size = attention_bytes(sequences, context, KV_BYTES, HEADS * DIM * 2)
    copies = copies_of(size)
    caches = [shapes.random_cache(shapes.blocks_of(contexts)) for _ in range(copies)]
    ours = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    del caches
    theirs = peer(sequences, 1, context, copies, causal=False)
    torch.cuda.empty_cache()
    by_bandwidth(report, ceiling, f"decode attention, {sequences} x {context}", size, ours, theirs)


def shared(report: Report, ceiling: Ceilings, sequences: int, prefix: int, context: int) -> None:
    """Contexts that all begin with the same `prefix` tokens, which are to be read once; `peer` reads them for each."""
    kernels, contexts = shapes.kernels(), [context] * sequences
    batch, queries = shapes.batch(contexts, [1] * sequences, shared=prefix), shapes.random_queries(sequences)
    caches = [shapes.random_cache(shapes.blocks_of(contexts))]
    ours = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    batch.prefixes = None
    alone = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    size = attention_bytes(sequences, context, KV_BYTES, HEADS * DIM * 2, prefix)
    by_bandwidth(report, ceiling, f"{sequences} x {context}, {prefix} of them shared", size, ours, alone)


def in_8_bits(report: Report, ceiling: Ceilings, sequences: int, context: int) -> None:
    """Keys and values of half the bytes; `peer` is ours in bfloat16."""
    contexts, times = [context] * sequences, []
    batch, queries = shapes.batch(contexts, [1] * sequences), shapes.random_queries(sequences)
    for kv_dtype in (torch.float8_e4m3fn, None):
        kernels, copies = shapes.kernels(kv_dtype), copies_of(sequences * context * KV_BYTES // 2)
        caches = [shapes.random_cache(shapes.blocks_of(contexts), kv_dtype) for _ in range(copies)]
        attend = partial(kernels.paged_attention, queries, batch=batch, scale=SCALE)
        times.append(seconds(lambda cache, attend=attend: attend(cache=cache), caches))  # type: ignore[misc]
        del caches
        torch.cuda.empty_cache()
    size = attention_bytes(sequences, context, KV_BYTES // 2, HEADS * DIM * 2)
    by_bandwidth(report, ceiling, f"decode attention in 8 bits, {sequences} x {context}", size, *times)


def prompt(report: Report, ceiling: Ceilings, tokens: int, context: int) -> None:
    kernels, batch, queries = shapes.kernels(), shapes.batch([context], [tokens]), shapes.random_queries(tokens)
    caches = [shapes.random_cache(shapes.blocks_of([context]))]
    ours = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    theirs = peer(1, tokens, context, 1, causal=True) if tokens == context else None
    operations = causal_operations(tokens, context, HEADS * DIM)
    by_operations(report, ceiling, f"prompt attention, {tokens} of {context}", operations, ours, theirs)


def mixed(report: Report, ceiling: Ceilings) -> None:
    """A chunk of a prompt beside sequences that decode, in one launch."""
    kernels, contexts, new = shapes.kernels(), [*[1024] * 31, 2048], [*[1] * 31, 512]
    batch, queries = shapes.batch(contexts, new), shapes.random_queries(sum(new))
    caches = [shapes.random_cache(shapes.blocks_of(contexts)) for _ in range(3)]
    ours = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    size = sum(contexts) * KV_BYTES + 2 * sum(new) * HEADS * DIM * 2
    by_bandwidth(report, ceiling, "31 x 1024 decode and 512 of 2048", size, ours, None)


def several(tokens: int, *widths: int) -> list[list[Tensor]]:
    """Sets of activations [tokens, width]."""
    copies = copies_of(tokens * sum(widths) * 2)
    return [
        [torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16) for width in widths] for _ in range(copies)
    ]


def norm(report: Report, ceiling: Ceilings, tokens: int) -> None:
    weight = torch.randn(HIDDEN, device="cuda", dtype=torch.bfloat16)
    sets, kernels = several(tokens, HIDDEN, HIDDEN), shapes.kernels()
    ours = seconds(lambda s: kernels.add_rms_norm(*s, weight, 1e-5), sets)
    theirs = seconds(lambda s: F.rms_norm(s[1].add_(s[0]), (HIDDEN,), weight, 1e-5), sets)
    by_bandwidth(report, ceiling, f"residual + norm, {tokens} tokens", 4 * tokens * HIDDEN * 2, ours, theirs)


def activation(report: Report, ceiling: Ceilings, tokens: int) -> None:
    sets, kernels = several(tokens, 2 * INTERMEDIATE), shapes.kernels()
    ours = seconds(lambda s: kernels.silu_mul(s[0]), sets)
    theirs = seconds(lambda s: F.silu(s[0][:, :INTERMEDIATE]) * s[0][:, INTERMEDIATE:], sets)
    by_bandwidth(report, ceiling, f"SiLU x up, {tokens} tokens", 3 * tokens * INTERMEDIATE * 2, ours, theirs)


def rope(report: Report, ceiling: Ceilings, tokens: int) -> None:
    kernels, batch, width = shapes.kernels(), shapes.batch([tokens], [tokens]), (HEADS + 2 * KV_HEADS) * DIM
    cache = shapes.random_cache(shapes.blocks_of([tokens]))
    cos, sin = (torch.rand(tokens, DIM // 2, device="cuda") for _ in range(2))
    sets = [s[0].view(tokens, -1, DIM).split([HEADS, KV_HEADS, KV_HEADS], 1) for s in several(tokens, width)]
    ours = seconds(lambda heads: kernels.place(*heads, cos, sin, cache, batch), sets)
    by_bandwidth(report, ceiling, f"rope + KV write, {tokens} tokens", 2 * tokens * width * 2, ours, None)


def peer(sequences: int, tokens: int, context: int, copies: int, *, causal: bool) -> float | None:
    """torch's scaled_dot_product_attention on contiguous keys and values, by the fastest of its kernels."""
    query = torch.randn(sequences, HEADS, tokens, DIM, device="cuda", dtype=torch.bfloat16)
    shape = (sequences, KV_HEADS, context, DIM)
    pairs = [
        [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)] for _ in range(min(copies, 16))
    ]
    times = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(backend):
                attend = partial(F.scaled_dot_product_attention, query, is_causal=causal, enable_gqa=True)
                times.append(seconds(lambda pair, attend=attend: attend(*pair), pairs))
        except RuntimeError as error:
            print(f"<!-- {backend}: {str(error).splitlines()[0]} -->")
    return min(times, default=None)


def by_bandwidth(report: Report, ceiling: Ceilings, name: str, size: float, ours: float, theirs: float | None) -> None:
    reached = size / ours
    report.row(name, ours * 1e6, f"{reached / 1e9:.0f} GB/s", reached / ceiling.bandwidth, *beside(ours, theirs))


def by_operations(
    report: Report, ceiling: Ceilings, name: str, operations: float, ours: float, theirs: float | None
) -> None:
    reached = operations / ours
    report.row(name, ours * 1e6, f"{reached / 1e12:.0f} TFLOP/s", reached / ceiling.bf16, *beside(ours, theirs))


def beside(ours: float, theirs: float | None) -> tuple[float | str, float | str]:
    return (theirs * 1e6, theirs / ours) if theirs else ("–", "–")


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    ceiling = measure.ceilings()
    print(f"copy {ceiling.bandwidth / 1e9:.0f} GB/s, bf16 product {ceiling.bf16 / 1e12:.0f} TFLOP/s")
    report = Report("kernels", ("kernel", "µs", "achieved", "of the ceiling", "peer µs", "ratio"))
    report.note(bandwidth=ceiling.bandwidth, bf16=ceiling.bf16)
    for context in (1024, 8192):
        for sequences in (1, 8, 32, 128, 256):
            decode(report, ceiling, sequences, context)
    for tokens, context in ((2048, 2048), (8192, 8192), (2048, 8192)):
        prompt(report, ceiling, tokens, context)
    mixed(report, ceiling)
    for sequences in (32, 128, 256):
        shared(report, ceiling, sequences, 4096, 5120)
    for sequences in (1, 32, 128):
        in_8_bits(report, ceiling, sequences, 1024)
    for tokens in (32, 8192):
        for part in (norm, rope, activation):
            part(report, ceiling, tokens)


if __name__ == "__main__":
    main()
