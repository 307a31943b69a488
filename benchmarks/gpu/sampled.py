"""The kernels from logits to tokens: rows of `kernels.py`'s table. What must move is each row once, in float32."""

import shapes
import torch
from measure import DEVICE, KernelTable, copies_of, seconds
from shapes import VOCABULARY
from torch import Tensor

from headwater_engine.kernels.interface import Masks, Penalties, SamplingBatch
from headwater_engine.kernels.triton import sampling
from headwater_engine.kernels.triton.cut import cut_kernel
from headwater_engine.sampling.rows import WORDS, numbers_of, plain_batch

ROWS = (1, 32, 256)
TOP_K, TOP_P = 50, 0.9
LIKELIEST = 5
"""Of log-probabilities."""


def batch_of(rows: int, *, temperature: float = 1.0, filters: bool = False) -> SamplingBatch:
    words = torch.randint(2**30, (WORDS, rows), dtype=torch.int32, device=DEVICE)
    batch = plain_batch(numbers_of(words), filters=filters)
    batch.inverse_temperatures.fill_(temperature)
    batch.top_k.fill_(TOP_K if filters else VOCABULARY)
    batch.top_p.fill_(TOP_P if filters else 1.0)
    batch.min_weight.zero_()
    return batch


def penalized(rows: int) -> SamplingBatch:
    """With penalties and a mask in each row."""
    batch, lines = batch_of(rows), torch.arange(rows, dtype=torch.int32, device=DEVICE)
    counts = torch.randint(3, (rows, VOCABULARY), dtype=torch.int32, device=DEVICE)
    numbers = [torch.full((rows,), number, device=DEVICE) for number in (1.1, 0.5, 0.1)]
    bits = torch.full((rows, -(-VOCABULARY // 32)), -1, dtype=torch.int32, device=DEVICE)
    batch.penalties, batch.masks = Penalties(counts, lines, *numbers), Masks(bits, lines)
    return batch


def logits_of(rows: int) -> list[Tensor]:
    copies = copies_of(4 * rows * VOCABULARY)
    return [3 * torch.randn(rows, VOCABULARY, device=DEVICE) for _ in range(copies)]


def measure(table: KernelTable) -> None:
    for rows in ROWS:
        _measure(table, rows)
    torch.cuda.empty_cache()


def _measure(table: KernelTable, rows: int) -> None:
    kernels, sets, size = shapes.kernels(), logits_of(rows), 4 * rows * VOCABULARY
    greedy, drawn, filtered = batch_of(rows, temperature=0.0), batch_of(rows), batch_of(rows, filters=True)
    choose = seconds(lambda each: each.argmax(-1), sets)
    ours = seconds(lambda each: kernels.sample(each, greedy), sets)
    table.by_bandwidth(f"sampling, greedy, {rows} rows", size, ours, choose)
    draw = seconds(lambda each: each.softmax(-1).div_(torch.empty_like(each).exponential_()).argmax(-1), sets)
    table.by_bandwidth(
        f"sampling, drawn, {rows} rows", size, seconds(lambda each: kernels.sample(each, drawn), sets), draw
    )
    ours = seconds(lambda each: kernels.sample(each, filtered), sets)
    table.by_bandwidth(f"sampling, top-k and top-p, {rows} rows", 2 * size, ours, seconds(sort_and_draw, sets))
    special = penalized(rows)
    ours = seconds(lambda each: kernels.sample(each, special), sets)
    table.by_bandwidth(f"sampling, penalties and a mask, {rows} rows", 2 * size + size / 32, ours)
    places = torch.arange(rows, device=DEVICE)
    ours = seconds(lambda each: kernels.sample_scored(each, drawn, places, LIKELIEST), sets)
    theirs = seconds(lambda each: each.log_softmax(-1).topk(LIKELIEST), sets)
    table.by_bandwidth(f"sampling, {LIKELIEST} log-probabilities, {rows} rows", 2 * size, ours, theirs)
    _kernels_alone(table, rows, sets, filtered)


def _kernels_alone(table: KernelTable, rows: int, sets: list[Tensor], batch: SamplingBatch) -> None:
    """Those two of the above that read a row again."""
    size, options = 4 * rows * VOCABULARY, sampling._options(VOCABULARY)
    numbers, cuts = (batch.inverse_temperatures, batch.top_k, batch.top_p), batch.keys.clone()
    ours = seconds(
        lambda each: cut_kernel[(rows,)](*each, *numbers, cuts, VOCABULARY, rows, **options),
        [(each, each.amax(-1)) for each in sets],
    )
    table.by_bandwidth(f"cut of top-k and top-p alone, {rows} rows", size, ours)
    places, tokens = torch.arange(rows, device=DEVICE), shapes.random_tokens(rows)
    pieces = -(-VOCABULARY // sampling._COLUMNS)
    likelier = torch.empty(rows, pieces, dtype=torch.int32, device=DEVICE)
    grid = (rows, pieces)
    ours = seconds(
        lambda each: sampling._rank_kernel[grid](each, places, tokens, likelier, VOCABULARY, **options), sets
    )
    theirs = seconds(lambda each: (each > each.gather(1, tokens.unsqueeze(1))).sum(-1), sets)
    table.by_bandwidth(f"rank of a token alone, {rows} rows", size, ours, theirs)


def sort_and_draw(logits: Tensor) -> Tensor:
    """Top-k, top-p and a draw as they are usually written."""
    likeliest, tokens = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1)
    shares = likeliest.softmax(-1)
    shares = shares.masked_fill(shares.cumsum(-1) - shares > TOP_P, 0.0)
    place = shares.div(torch.empty_like(shares).exponential_()).argmax(-1, keepdim=True)
    return tokens.gather(1, place)
