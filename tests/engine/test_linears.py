"""Projections by name: several of one input as one product, biases, the two uses of a vocabulary."""

from collections.abc import Collection

import pytest
import torch
from torch import Tensor

from headwater_engine.distributed.ranks import ALONE, Alone, Ranks
from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.layers.linears import Linears
from headwater_engine.layers.weights import Weights
from headwater_engine.quantization.stored import StoredWeight
from tests.engine.batches import ragged, random

KERNELS = TorchKernels()
BATCH = ragged([3, 2], [3, 2])


class Tensors:
    """A checkpoint in memory."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = {name.replace("__", "."): tensor for name, tensor in tensors.items()}

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def read(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        return StoredWeight(self.tensors[name])


class Part(Alone):
    """A rank that hears nothing of the others: what it gives is its part."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def linears_of(ranks: Ranks = ALONE, /, **tensors: Tensor) -> Linears:
    return Linears(Weights(Tensors(**tensors), torch.float32), KERNELS, ranks)


def test_projections_of_one_input_are_one_product_with_their_outputs_behind_one_another() -> None:
    first, second = random(6, 4), random(3, 4, seed=1)
    biases = random(6, seed=2), random(3, seed=3)
    linears = linears_of(
        layer__a__weight=first, layer__b__weight=second, layer__a__bias=biases[0], layer__b__bias=biases[1]
    )
    x = random(5, 4, seed=4)
    linear = linears.scope("layer").column(("a", "b"), 4, (linears.share(6), linears.share(3)), bias=True)
    expected = torch.cat([x @ first.T + biases[0], x @ second.T + biases[1]], dim=1)
    torch.testing.assert_close(linear(x, BATCH), expected)


def test_a_projection_of_another_shape_is_named() -> None:
    linears = linears_of(layer__down__weight=random(6, 4))
    with pytest.raises(LoadError, match=r"layer\.down\.weight has shape \[6, 4\]; the config asks for \[4, 6\]"):
        linears.scope("layer").row("down", linears.share(6), 4)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_of_ranks_make_up_the_whole(size: int) -> None:
    """Columns behind one another, rows in a sum, and each bias once."""
    up, down, biases = random(10, 4), random(4, 10, seed=1), (random(10, seed=2), random(4, seed=3))
    x, inner = random(5, 4, seed=4), random(5, 10, seed=5)
    columns, total = [], torch.zeros(5, 4)
    for rank in range(size):
        linears = linears_of(
            Part(rank, size), up__weight=up, up__bias=biases[0], down__weight=down, down__bias=biases[1]
        )
        own = linears.share(10)
        columns.append(linears.column(("up",), 4, (own,), bias=True)(x, BATCH))
        assert columns[-1].shape[1] == own.size < 10
        total += linears.row("down", own, 4, bias=True)(inner[:, own.span], BATCH)
    torch.testing.assert_close(torch.cat(columns, dim=1), x @ up.T + biases[0])
    torch.testing.assert_close(total, inner @ down.T + biases[1])


@pytest.mark.parametrize(("rows", "size"), [(8, 2), (9, 2), (9, 4), (5, 4)])
def test_a_vocabulary_is_spread_over_ranks(rows: int, size: int) -> None:
    """5 tokens over 4 ranks are 2, 2, 1 and none: all ranks compute as many, so that what they give fits together."""
    table, tokens, hidden = random(rows, 4), torch.arange(rows), random(2, 4, seed=1)
    vectors, logits = torch.zeros(rows, 4), []
    for rank in range(size):
        vocabulary = linears_of(Part(rank, size), words__weight=table).vocabulary("words", rows, 4)
        vectors += vocabulary.embed(tokens)
        logits.append(vocabulary.head()(hidden))
    assert torch.equal(vectors, table)
    each = -(-rows // size)
    assert all(part.shape == (2, each) for part in logits)
    torch.testing.assert_close(torch.cat(logits, dim=1)[:, :rows], hidden @ table.T)


def test_a_vocabulary_is_looked_up_and_scored_against() -> None:
    table, tokens = random(9, 4), torch.tensor([8, 0, 3])
    vocabulary = linears_of(words__weight=table).vocabulary("words", 9, 4)
    assert torch.equal(vocabulary.embed(tokens), table[tokens])
    scaled = linears_of(words__weight=table).vocabulary("words", 9, 4, scale=2.5)
    assert torch.equal(scaled.embed(tokens), 2.5 * table[tokens]), "only at the entrance"
    torch.testing.assert_close(scaled.head()(random(2, 4)), random(2, 4) @ table.T)
    hidden = random(2, 4, seed=1)
    torch.testing.assert_close(vocabulary.head()(hidden), hidden @ table.T)


@pytest.mark.parametrize(("dim", "span"), [(0, slice(2, 5)), (1, slice(0, 3))])
def test_a_stored_weight_is_cut_before_it_is_read(dim: int, span: slice) -> None:
    whole = random(6, 4)
    stored = StoredWeight(whole).cut(dim, span)
    assert stored.shape == ((3, 4) if dim == 0 else (6, 3))
    assert torch.equal(stored.dense(), whole[span] if dim == 0 else whole[:, span])
    assert stored.dense().untyped_storage().data_ptr() == whole.untyped_storage().data_ptr(), "no copy of the whole"
