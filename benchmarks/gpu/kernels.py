"""What each kernel achieves at the shapes of Llama-3.1-8B, beside this GPU's ceilings and torch's own kernel.

    PYTHONPATH=engine python benchmarks/gpu/kernels.py

Decoding attention and the small kernels wait for memory: bytes that must move, over the bandwidth of a copy. Attention
of prompts and products of many rows compute: operations, of attention those of the causal half, over the rate of a
large product. `peer` is torch's best scaled_dot_product_attention, which reads contiguous keys and values where ours
goes through block tables; beside the small kernels, the same in plain torch operations.
"""

from functools import partial

import beside
import sampled
import shapes
import torch
import torch.nn.functional as F
from floors import attention_bytes, causal_operations
from measure import KernelTable, copies_of, seconds
from shapes import DIM, HEADS, KV_BYTES, KV_HEADS
from torch.nn.attention import SDPBackend, sdpa_kernel

SCALE = DIM**-0.5
SEQUENCES, CONTEXTS = (1, 8, 32, 128, 256), (1024, 8192)
PROMPTS = ((2048, 2048), (8192, 8192), (2048, 8192))
"""(tokens, of a context)"""
MIXED = 31, 1024, 512
"""Sequences that decode, their context, and tokens of a prompt beside them."""
PREFIX, BEHIND = 4096, 5120
"""Tokens that contexts share, and those of a whole context."""


def decode(table: KernelTable, sequences: int, context: int) -> None:
    kernels, contexts = shapes.kernels(), [context] * sequences
    batch, queries = shapes.batch(contexts, [1] * sequences), shapes.random_queries(sequences)
    size = attention_bytes(sequences, context, KV_BYTES, HEADS * DIM * 2)
    copies = copies_of(size)
    caches = [shapes.random_cache(shapes.blocks_of(contexts)) for _ in range(copies)]
    ours = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    del caches
    theirs = peer(sequences, 1, context, copies, causal=False)
    torch.cuda.empty_cache()
    table.by_bandwidth(f"decode attention, {sequences} x {context}", size, ours, theirs)


def shared(table: KernelTable, sequences: int, prefix: int, context: int) -> None:
    """Contexts that all begin with the same `prefix` tokens, which are to be read once; `peer` reads them for each."""
    kernels, contexts = shapes.kernels(), [context] * sequences
    batch, queries = shapes.batch(contexts, [1] * sequences, shared=prefix), shapes.random_queries(sequences)
    caches = [shapes.random_cache(shapes.blocks_of(contexts))]
    ours = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    batch.prefixes = None
    alone = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    size = attention_bytes(sequences, context, KV_BYTES, HEADS * DIM * 2, prefix)
    table.by_bandwidth(f"{sequences} x {context}, {prefix} of them shared", size, ours, alone)


def in_8_bits(table: KernelTable, sequences: int, context: int) -> None:
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
    table.by_bandwidth(f"decode attention in 8 bits, {sequences} x {context}", size, *times)


def prompt(table: KernelTable, tokens: int, context: int) -> None:
    kernels, batch, queries = shapes.kernels(), shapes.batch([context], [tokens]), shapes.random_queries(tokens)
    caches = [shapes.random_cache(shapes.blocks_of([context]))]
    ours = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    theirs = peer(1, tokens, context, 1, causal=True) if tokens == context else None
    operations = causal_operations(tokens, context, HEADS * DIM)
    table.by_operations(f"prompt attention, {tokens} of {context}", operations, ours, theirs)


def mixed(table: KernelTable, decoding: int, context: int, chunk: int) -> None:
    """A chunk of a prompt beside sequences that decode, in one launch."""
    kernels, contexts, new = shapes.kernels(), [*[context] * decoding, 2 * context], [*[1] * decoding, chunk]
    batch, queries = shapes.batch(contexts, new), shapes.random_queries(sum(new))
    caches = [shapes.random_cache(shapes.blocks_of(contexts)) for _ in range(3)]
    ours = seconds(lambda cache: kernels.paged_attention(queries, cache, batch, scale=SCALE), caches)
    size = sum(contexts) * KV_BYTES + 2 * sum(new) * HEADS * DIM * 2
    table.by_bandwidth(f"{decoding} x {context} decode and {chunk} of {2 * context}", size, ours)


def peer(sequences: int, tokens: int, context: int, copies: int, *, causal: bool) -> float | None:
    """torch's scaled_dot_product_attention on contiguous keys and values, by the fastest of its kernels."""
    query, shape = shapes.random(sequences, HEADS, tokens, DIM), (sequences, KV_HEADS, context, DIM)
    pairs = [[shapes.random(*shape) for _ in range(2)] for _ in range(min(copies, 16))]
    times = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(backend):
                attend = partial(F.scaled_dot_product_attention, query, is_causal=causal, enable_gqa=True)
                times.append(seconds(lambda pair, attend=attend: attend(*pair), pairs))
        except RuntimeError as error:
            print(f"<!-- {backend}: {str(error).splitlines()[0]} -->")
    return min(times, default=None)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    table = KernelTable()
    for context in CONTEXTS:
        for sequences in SEQUENCES:
            decode(table, sequences, context)
    for tokens, context in PROMPTS:
        prompt(table, tokens, context)
    mixed(table, *MIXED)
    for sequences in SEQUENCES[2:]:
        shared(table, sequences, PREFIX, BEHIND)
    for sequences in (SEQUENCES[0], *SEQUENCES[2:4]):
        in_8_bits(table, sequences, CONTEXTS[0])
    beside.measure(table)
    sampled.measure(table)


if __name__ == "__main__":
    main()
