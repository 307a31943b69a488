"""From logits to tokens. Two kernels do it, or three where a row asks for top-k, top-p or min-p.

`reference_sampling.py` is the definition, which is followed to the last bit: no product is fused with a sum.

Each program takes a piece of a row, and reads it once (`_read_kernel`). In that pass it adds up what log-probabilities
need, of the logits as the model gave them; then come penalties, and a bit for each token that says whether it may come;
then the noise, and the largest score. What is left is the largest of the pieces' scores. With top-k, top-p and min-p
the draw has to wait until a row's cut is known (`cut.py`), and reads the row again (`_draw_kernel`). So does whoever
asks how many tokens were likelier than the one that was drawn (`_rank_kernel`).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from headwater_engine.kernels.interface import Masks, Maxima, Penalties, SamplingBatch, Scores
from headwater_engine.kernels.triton.cut import cut_kernel
from headwater_engine.kernels.triton.sampling_numbers import OF_BATCH, load, noise_of, order_of, weight_of

_COLUMNS = 4096
"""Of a program at once."""
_NEVER = tl.constexpr(-(2**63))


class _Pieces(NamedTuple):
    """Of R rows that are read in P pieces each, what each piece comes to."""

    best: Tensor
    """[R, P] float32: the largest logit, or NaN."""
    likeliest: Tensor
    """[R, P] int32: the first token that has it."""
    scores: Tensor
    """[R, P] float32: the largest score, of greedy rows the largest logit."""
    drawn: Tensor
    """[R, P] int32: the first token that has that."""


class _Sums(NamedTuple):
    """The same for log-probabilities, of rows that want some."""

    wanted: Tensor
    """[R] int32: -1 where none are."""
    largest: Tensor
    """[R, P] float32"""
    sums: Tensor
    """[R, P] float32: of e^(logit - largest)."""
    tops: Tensor
    """[R, P, k] int64: the k likeliest, as numbers in their order: the logit's, then the lower token's first."""


def maxima(logits: Tensor, batch: SamplingBatch) -> Maxima:
    """See `Kernels.maxima`."""
    return _sample(logits, logits, batch, None)


def sample_scored(logits: Tensor, batch: SamplingBatch, rows: Tensor, k: int) -> tuple[Tensor, Scores]:
    """See `Kernels.sample_scored`."""
    count, size = logits.shape
    pieces = triton.cdiv(size, _COLUMNS)
    k = min(k, size)
    wanted = torch.full((count,), -1, dtype=torch.int32, device=logits.device).index_fill_(0, rows, 0)
    largest, sums = torch.empty(2, count, pieces, dtype=torch.float32, device=logits.device)
    tops = torch.empty(count, pieces, k, dtype=torch.int64, device=logits.device)
    summed = _Sums(wanted, largest, sums, tops)
    changed = torch.empty_like(logits) if batch.changes else logits
    tokens = _sample(logits, changed, batch, summed).tokens
    return tokens, _score(logits, rows, tokens[rows].clamp(min=0), summed, k)


def _sample(logits: Tensor, changed: Tensor, batch: SamplingBatch, sums: _Sums | None) -> Maxima:
    """`changed`: where the logits go that tokens are drawn from; it may be the same memory."""
    rows, size = logits.shape
    pieces = triton.cdiv(size, _COLUMNS)
    if rows == 0:
        return Maxima(logits.new_empty(0), logits.new_empty(0), batch.keys.new_empty(0, dtype=torch.long))
    found = _Pieces(
        torch.empty(rows, pieces, dtype=torch.float32, device=logits.device),
        torch.empty(rows, pieces, dtype=torch.int32, device=logits.device),
        torch.empty(rows, pieces, dtype=torch.float32, device=logits.device),
        torch.empty(rows, pieces, dtype=torch.int32, device=logits.device),
    )
    at_once = batch.biases is None and not batch.filters
    _read(logits, changed, batch, sums, found, draws=at_once, special=sums is not None or batch.changes)
    if batch.biases is not None:
        changed.view(-1).index_add_(0, batch.biases.places, batch.biases.values)
        _read(changed, changed, batch, None, found, draws=not batch.filters, special=False)
    best, piece = found.best.max(dim=-1, keepdim=True)  # NaN is the largest; of equals the first
    likeliest = found.likeliest.gather(1, piece).squeeze(1).long()
    best = torch.where(best == float("inf"), float("nan"), best).squeeze(1)
    if batch.filters:
        _draw(changed, best, batch, found)
    score, piece = found.scores.max(dim=-1, keepdim=True)
    drawn = found.drawn.gather(1, piece).squeeze(1).long()
    score = score.squeeze(1)
    # With logits near the largest number, a tiny temperature makes all scores -inf.
    tokens = torch.where(score == float("-inf"), likeliest, drawn)
    return Maxima(score, best, torch.where(best.isfinite(), tokens, -1))


def _options(size: int) -> dict[str, int]:
    return {"COLUMNS": min(_COLUMNS, triton.next_power_of_2(size)), "num_warps": 8, "enable_fp_fusion": False}


def _read(
    logits: Tensor,
    changed: Tensor,
    batch: SamplingBatch,
    sums: _Sums | None,
    found: _Pieces,
    *,
    draws: bool,
    special: bool,
) -> None:
    """`special`: the batch's penalties and masks, and sums, count."""
    rows, size = logits.shape
    none, number = batch.keys, batch.top_p  # stand where nothing is read
    if special and (batch.penalties is None or batch.masks is None or sums is None):
        none = torch.full((rows,), -1, dtype=torch.int32, device=logits.device)
    penalties = batch.penalties if special and batch.penalties else Penalties(none, none, number, number, number)
    masks = batch.masks if special and batch.masks else Masks(none, none)
    wanted = sums or _Sums(none, found.best, found.best, batch.keys.new_empty(1, 1, 0, dtype=torch.int64))
    _read_kernel[(rows, found.best.shape[1])](
        logits,
        changed,
        *penalties,
        *masks,
        *wanted,
        batch.inverse_temperatures,
        batch.keys,
        *found,
        size,
        rows,
        masks.bits.shape[-1],
        wanted.tops.shape[2],
        int(draws),
        int(special and batch.changes and not draws),
        SPECIAL=special,
        **_options(size),
    )


@triton.jit(
    do_not_specialize=["size", "rows", "words", "k", "draws", "writes"], do_not_specialize_on_alignment=OF_BATCH
)
def _read_kernel(
    logits,  # [rows, size]
    changed,  # [rows, size]
    counts,  # as `Penalties`, `Masks`, `_Sums`, `SamplingBatch`, `_Pieces`
    lines,
    repetition,
    presence,
    frequency,
    bits,
    mask_lines,
    wanted,
    largest,
    sums,
    tops,
    inverse_temperatures,
    keys,
    best,
    likeliest,
    scores,
    drawn,
    size,
    rows,
    words,  # of a row of bits
    k,
    draws,  # whether scores are; else somebody else does
    writes,  # whether `changed` is read
    SPECIAL: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = row * tl.num_programs(1) + tl.program_id(1)
    token, value = load(logits + row * size, tl.program_id(1) * COLUMNS, size, COLUMNS)
    if SPECIAL:
        if tl.load(wanted + row) >= 0:
            _add_up(token, value, largest + at, sums + at, tops + at * k, size, k)
        line = tl.load(lines + row).to(tl.int64)
        if line >= 0:
            factor, once, each = tl.load(repetition + row), tl.load(presence + row), tl.load(frequency + row)
            value = _penalized(token, value, counts + line * size, factor, once, each, size)
        mask = tl.load(mask_lines + row).to(tl.int64)
        if mask >= 0:
            word = tl.load(bits + mask * words + token // 32, mask=token < size, other=0)
            value = tl.where(((word >> (token % 32)) & 1) != 0, value, float("-inf"))
        if writes != 0:
            tl.store(changed + row * size + token, value, mask=token < size)
    broken = tl.max((value != value).to(tl.int32), 0) != 0
    top = tl.max(tl.where(value != value, float("-inf"), value), 0)
    first = tl.min(tl.where(value == top, token, size), 0)
    tl.store(best + at, tl.where(broken, float("nan"), top))
    tl.store(likeliest + at, first)
    scale = tl.load(inverse_temperatures + row)
    if (draws != 0) & (scale != 0):
        score = _score_of(token, value, scale, keys, row, rows)
        top = tl.max(score, 0)
        first = tl.min(tl.where(score == top, token, size), 0)
    tl.store(scores + at, top)
    tl.store(drawn + at, first)


@triton.jit
def _penalized(token, value, counts, factor, once, each, size):
    count = tl.load(counts + token, mask=token < size, other=0)
    repeated = tl.where(value > 0, tl.div_rn(value, factor + tl.zeros_like(value)), value * factor)
    value = tl.where(count > 0, repeated, value)
    shift = once + each * (count >> 1).to(tl.float32)
    return tl.where(count > 1, value - shift, value)


@triton.jit
def _add_up(token, value, largest, sums, tops, size, k):
    """The piece's part of a softmax's sum, and its k likeliest tokens."""
    top = tl.max(value, 0)
    tl.store(largest, top)
    share = tl.exp(value - tl.where(top == float("-inf"), 0.0, top))
    tl.store(sums, tl.sum(tl.where(token < size, share, 0.0), 0))
    # In the order of logits, and then of tokens, the lower one first.
    place = (order_of(value).to(tl.int64) << 32) | (0x7FFFFFFF - token).to(tl.int64)
    place = tl.where(token < size, place, _NEVER)
    for n in range(k):
        highest = tl.max(place, 0)
        tl.store(tops + n, highest)
        place = tl.where(place == highest, _NEVER, place)


@triton.jit
def _score_of(token, value, scale, keys, row, rows):
    low = tl.load(keys + row).to(tl.uint32, bitcast=True)
    high = tl.load(keys + rows + row).to(tl.uint32, bitcast=True)
    return value * scale + noise_of(token.to(tl.uint32), low, high)


def _draw(logits: Tensor, best: Tensor, batch: SamplingBatch, found: _Pieces) -> None:
    """From what top-k, top-p and min-p leave of each row; `best` [R], the largest logits."""
    rows, size = logits.shape
    numbers = (logits, best, batch.inverse_temperatures, batch.top_k, batch.top_p)
    cuts = torch.empty(2, rows, dtype=torch.int32, device=logits.device)
    options = _options(size)
    cut_kernel[(rows,)](*numbers, cuts, size, rows, **options)
    grid = found.scores.shape
    _draw_kernel[(grid[0], grid[1])](
        *numbers[:3], batch.min_weight, cuts, batch.keys, found.scores, found.drawn, size, rows, **options
    )


@triton.jit(do_not_specialize=["size", "rows"], do_not_specialize_on_alignment=OF_BATCH)
def _draw_kernel(
    logits,  # [rows, size]
    best,  # [rows]
    inverse_temperatures,
    min_weight,
    cuts,  # [2, rows]
    keys,  # [2, rows]
    scores,  # as in `_Pieces`
    drawn,
    size,
    rows,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(inverse_temperatures + row)
    if scale == 0:
        return
    token, value = load(logits + row * size, tl.program_id(1) * COLUMNS, size, COLUMNS)
    order, cut, last = order_of(value), tl.load(cuts + row), tl.load(cuts + rows + row)
    kept = (order > cut) | ((order == cut) & (token <= last))
    kept &= weight_of((value - tl.load(best + row)) * scale) >= tl.load(min_weight + row)
    score = tl.where(kept, _score_of(token, value, scale, keys, row, rows), float("-inf"))
    top = tl.max(score, 0)
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(scores + at, top)
    tl.store(drawn + at, tl.min(tl.where(score == top, token, size), 0))


def _score(logits: Tensor, rows: Tensor, tokens: Tensor, sums: _Sums, k: int) -> Scores:
    """Of `rows` [N] and their tokens [N]."""
    pieces = sums.largest.shape[1]
    likelier = torch.empty(len(rows), pieces, dtype=torch.int32, device=logits.device)
    size = logits.shape[1]
    _rank_kernel[(len(rows), pieces)](logits, rows, tokens, likelier, size, **_options(size))
    largest, added = sums.largest[rows], sums.sums[rows]
    most = largest.amax(dim=-1, keepdim=True)
    whole = most + (added * (largest - most).exp()).sum(dim=-1, keepdim=True).log()
    tops = sums.tops[rows].flatten(1).topk(k, dim=-1).values
    top_tokens = 0x7FFFFFFF - (tops & 0xFFFFFFFF)
    own = logits[rows.unsqueeze(1), torch.cat([tokens.unsqueeze(1), top_tokens], dim=1)] - whole
    return Scores(tokens, own[:, 0], likelier.sum(dim=-1) + 1, top_tokens, own[:, 1:])


@triton.jit(do_not_specialize=["size"])
def _rank_kernel(
    logits,  # [R, size]
    places,  # [N] int64: among the R rows
    tokens,  # [N] int64
    likelier,  # [N, pieces] int32: how many tokens of the piece are likelier than that
    size,
    COLUMNS: tl.constexpr,
):
    row = tl.load(places + tl.program_id(0))
    _, value = load(logits + row * size, tl.program_id(1) * COLUMNS, size, COLUMNS)
    own = tl.load(logits + row * size + tl.load(tokens + tl.program_id(0)))
    at = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(likelier + at, tl.sum((value > own).to(tl.int32), 0))
