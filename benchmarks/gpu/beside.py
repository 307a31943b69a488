"""The kernels of a layer beside attention, those around it, and cuBLAS's products: rows of `kernels.py`'s table."""

import shapes
import torch
import torch.nn.functional as F
from measure import DEVICE, KernelTable, copies_of, seconds
from shapes import DIM, DTYPE, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, VOCABULARY
from torch import Tensor

from headwater_engine.kernels.interface import BLOCK_SIZE, FlatBatch, SeatTables, Told
from headwater_engine.kernels.triton.all_reduce import BYTES, LARGEST, Peers, sum_over_peers
from headwater_engine.kernels.triton.merge import Parts, merge
from headwater_engine.quantization.stored import StoredWeight

FEW, MANY = 32, 8192
"""Tokens of a step that decodes, and of one that reads prompts."""
ROWS = (1, 32, 256, MANY)
"""Of products."""
COMPUTING = 1024
"""Rows from which on a product computes more than it reads."""
SEATS, CONTEXT = 256, 1024
PRODUCTS = {
    "qkv": (HIDDEN, (HEADS + 2 * KV_HEADS) * DIM),
    "o": (HEADS * DIM, HIDDEN),
    "gate and up": (HIDDEN, 2 * INTERMEDIATE),
    "down": (INTERMEDIATE, HIDDEN),
    "head": (HIDDEN, VOCABULARY),
}
"""Inputs and outputs."""


def several(tokens: int, *widths: int) -> list[list[Tensor]]:
    """Sets of activations [tokens, width]."""
    copies = copies_of(tokens * sum(widths) * 2)
    return [[shapes.random(tokens, width) for width in widths] for _ in range(copies)]


def norm(table: KernelTable, tokens: int) -> None:
    weight, kernels = shapes.random(HIDDEN), shapes.kernels()
    sets = several(tokens, HIDDEN, HIDDEN)
    ours = seconds(lambda s: kernels.add_rms_norm(*s, weight, 1e-5), sets)
    theirs = seconds(lambda s: F.rms_norm(s[1].add_(s[0]), (HIDDEN,), weight, 1e-5), sets)
    table.by_bandwidth(f"residual + norm, {tokens} tokens", 4 * tokens * HIDDEN * 2, ours, theirs)


def activation(table: KernelTable, tokens: int) -> None:
    sets, kernels = several(tokens, 2 * INTERMEDIATE), shapes.kernels()
    ours = seconds(lambda s: kernels.silu_mul(s[0]), sets)
    theirs = seconds(lambda s: F.silu(s[0][:, :INTERMEDIATE]) * s[0][:, INTERMEDIATE:], sets)
    table.by_bandwidth(f"SiLU x up, {tokens} tokens", 3 * tokens * INTERMEDIATE * 2, ours, theirs)


def rope(table: KernelTable, tokens: int) -> None:
    kernels, batch, width = shapes.kernels(), shapes.batch([tokens], [tokens]), (HEADS + 2 * KV_HEADS) * DIM
    cache = shapes.random_cache(shapes.blocks_of([tokens]))
    cos, sin = (torch.rand(tokens, DIM // 2, device=DEVICE) for _ in range(2))
    sets = [s[0].view(tokens, -1, DIM).split([HEADS, KV_HEADS, KV_HEADS], 1) for s in several(tokens, width)]
    ours = seconds(lambda heads: kernels.place(*heads, cos, sin, cache, batch), sets)
    table.by_bandwidth(f"rope + KV write, {tokens} tokens", 2 * tokens * width * 2, ours)


def embedding(table: KernelTable, tokens: int) -> None:
    """Of a vocabulary of which this rank has the first half."""
    kernels, vectors = shapes.kernels(), shapes.random(VOCABULARY // 2, HIDDEN)
    look_up, sets = kernels.lookup(vectors), [shapes.random_tokens(tokens) for _ in range(8)]
    ours = seconds(lambda s: look_up(s, 0), sets)
    last = VOCABULARY // 2 - 1
    theirs = seconds(lambda s: F.embedding(s.clamp(max=last), vectors).mul_((s <= last).unsqueeze(1)), sets)
    # What others have is not read.
    table.by_bandwidth(f"embedding of half a vocabulary, {tokens} tokens", 1.5 * tokens * HIDDEN * 2, ours, theirs)


def spread(table: KernelTable, sequences: int, context: int) -> None:
    """A step that decodes, in which every sequence has a new block."""
    kernels, batch = shapes.kernels(), shapes.batch([context] * sequences, [1] * sequences)
    whole = [torch.arange(sequences, dtype=torch.int32, device=DEVICE) for _ in range(6)]
    blocks = -(-context // BLOCK_SIZE)
    tables = SeatTables(torch.cat([batch.block_tables, batch.block_tables[:1]]), shapes.random_tokens(sequences + 1))
    told = Told(-torch.ones_like(whole[0]), *whole[:2], torch.stack(whole[2:4]), torch.stack(whole[4:6]) * blocks)
    flat = FlatBatch(shapes.random_tokens(sequences), batch, *(each.long() for each in whole[:2]))
    ours = seconds(lambda _: kernels.spread(told, tables, flat), [None])
    size = sequences * (2 * 4 * blocks + 4 * 8 + 5 * 8)
    table.by_bandwidth(f"spread of a step, {sequences} x {context}", size, ours)


def merging(table: KernelTable, tokens: int, parts: int) -> None:
    size = tokens * HEADS * (parts * (DIM + 1) * 4 + DIM * 2)
    results = (
        (torch.randn(tokens, HEADS, parts, DIM, device=DEVICE), torch.rand(tokens, HEADS, parts, device=DEVICE))
        for _ in range(copies_of(size))
    )
    sets, output = [Parts(*each, parts) for each in results], shapes.random_queries(tokens)
    ours = seconds(lambda each: merge(each, output), sets)
    theirs = seconds(lambda p: (p.results * (p.sums * 0.693).softmax(-1).unsqueeze(-1)).sum(2).to(DTYPE), sets)
    table.by_bandwidth(f"merge of {parts} parts, {tokens} tokens", size, ours, theirs)


def all_reduce(table: KernelTable, tokens: int) -> None:
    """One rank with itself: all that its kernel does but to wait for others, of whom there is nobody on one GPU."""
    memory = torch.zeros(BYTES, dtype=torch.uint8, device=DEVICE)
    places = torch.tensor([memory.data_ptr()], dtype=torch.int64, device=DEVICE)
    peers = Peers(0, 1, places, torch.zeros(1, dtype=torch.int64, device=DEVICE))
    x = shapes.random(tokens, HIDDEN)
    assert x.nbytes <= LARGEST
    ours = seconds(lambda _: sum_over_peers(x, peers), [None])
    table.by_bandwidth(f"all-reduce, one rank with itself, {tokens} tokens", 4 * x.nbytes, ours)


def product(table: KernelTable, name: str, tokens: int) -> None:
    inputs, outputs = PRODUCTS[name]
    wide, kernels = name == "head", shapes.kernels()
    size = 2 * (inputs * outputs + tokens * inputs) + (4 if wide else 2) * tokens * outputs
    weights = [StoredWeight(shapes.random(outputs, inputs)) for _ in range(copies_of(size))]
    x, sets = shapes.random(tokens, inputs), [kernels.linear([weight], wide=wide) for weight in weights]
    ours = seconds(lambda multiply: multiply(x), sets)
    if tokens < COMPUTING:
        table.by_bandwidth(f"product, {name}, {tokens} tokens", size, ours)
    else:
        table.by_operations(f"product, {name}, {tokens} tokens", 2 * tokens * inputs * outputs, ours)


def measure(table: KernelTable) -> None:
    for tokens in (FEW, MANY):
        for part in (norm, rope, activation, embedding):
            part(table, tokens)
    spread(table, SEATS, CONTEXT)
    for parts in (2, 16):
        merging(table, FEW, parts)
    for tokens in (1, FEW):
        all_reduce(table, tokens)
    for name in PRODUCTS:
        for tokens in ROWS:
            if name != "head" or tokens <= SEATS:  # no more rows are ever wanted
                product(table, name, tokens)
    torch.cuda.empty_cache()
