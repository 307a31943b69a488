"""Made-up batches for kernels: sequences of odd lengths over blocks in random order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, CacheSpec, Kernels

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views(kernels: Kernels, tokens: int, heads: int, kv_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as a model has them: views of one fused product."""
    fused = random(tokens, (heads + 2 * kv_heads) * dim).to(kernels.device, kernels.dtype)
    q, k, v = fused.split((heads * dim, kv_heads * dim, kv_heads * dim), dim=-1)
    return q.view(tokens, heads, dim), k.view(tokens, kv_heads, dim), v.view(tokens, kv_heads, dim)


def ragged(contexts: Sequence[int], new: Sequence[int], device: torch.device = CPU) -> AttentionBatch:
    """Sequences of `contexts` tokens, the last `new` of which are in the batch, over blocks in random order."""
    counts = [-(-context // BLOCK_SIZE) for context in contexts]
    order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(1)).tolist()
    tables = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    positions, slots = [], []
    for s, (context, count) in enumerate(zip(contexts, new, strict=True)):
        blocks = [order.pop() for _ in range(counts[s])]
        tables[s, : counts[s]] = torch.tensor(blocks)
        for position in range(context - count, context):
            positions.append(position)
            slots.append(blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
    starts = torch.tensor([0, *new]).cumsum(0).int()
    return AttentionBatch(
        positions=torch.tensor(positions, dtype=torch.long, device=device),
        slots=torch.tensor(slots, dtype=torch.long, device=device),
        block_tables=tables.to(device),
        query_starts=starts.to(device),
        context_lengths=torch.tensor(contexts, dtype=torch.int32, device=device),
        longest_query=max(new),
        longest_context=max(contexts),
        decodes=next((s for s, count in enumerate(new) if count != 1), len(new)),
    )


def attend(
    kernels: Kernels,
    contexts: Sequence[int],
    new: Sequence[int],
    heads: int,
    kv_heads: int,
    dim: int,
    **options: object,
) -> Tensor:
    """Fill the whole context, then attend with the new tokens."""
    whole = ragged(contexts, contexts, kernels.device)
    cache = kernels.allocate(whole.block_tables.max().item() + 4, CacheSpec(kv_heads, dim, dim))  # type: ignore[arg-type]
    _, keys, values = views(kernels, sum(contexts), heads, kv_heads, dim)
    kernels.write_cache(keys, values, cache, whole.slots)
    batch = ragged(contexts, new, kernels.device)
    queries, _, _ = views(kernels, sum(new), heads, kv_heads, dim)
    return kernels.paged_attention(queries, cache, batch, scale=dim**-0.5, **options)  # type: ignore[arg-type]
