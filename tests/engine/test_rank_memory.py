"""What a rank keeps is its part of the weights, and of keys and values, beside what every rank has; and no more."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from headwater_engine.distributed.ranks import ProcessRanks, Ranks
from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import BLOCK_SIZE, Kernels, LayerCache
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import ModelFolder, resolve
from tests.engine.in_ranks import in_ranks
from tests.engine.test_model_memory import counted

LAYERS, HIDDEN, FEATURES, HEADS, DIM, BLOCKS = 3, 512, 1536, 8, 64, 256
FLOAT = 4
"""Bytes of a number here."""


class Kept(NamedTuple):
    weights: int
    cache: int


def model(vocabulary: int, keys: int) -> ModelFolder:
    """A llama of random weights, whose head and embedding are two; `keys`: heads of keys."""
    shape = {
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": FEATURES,
        "num_attention_heads": HEADS,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    return resolve(f"random:{json.dumps(shape)}")


def share_of_one(vocabulary: int, keys: int, ranks: int) -> Kept:
    """In bytes. A head of keys is the least that a rank can have, and norms are everybody's."""
    own_keys = max(1, keys // ranks)
    attention = 2 * HIDDEN * HEADS * DIM // ranks + 2 * HIDDEN * own_keys * DIM
    mlp = 3 * HIDDEN * FEATURES // ranks
    tables = 2 * vocabulary * HIDDEN // ranks
    norms = (2 * LAYERS + 1) * HIDDEN
    cache = LAYERS * BLOCKS * BLOCK_SIZE * own_keys * 2 * DIM
    return Kept(FLOAT * (LAYERS * (attention + mlp) + tables + norms), FLOAT * cache)


def load_and_allocate(folder: ModelFolder, kernels: Kernels, ranks: Ranks) -> tuple[Model, list[LayerCache]]:
    loaded = load_model(folder, kernels=kernels, dtype="float32", ranks=ranks)
    return loaded, [kernels.allocate(BLOCKS, spec) for spec in loaded.config.caches]


@pytest.mark.parametrize(
    ("ranks", "keys", "kernels"),
    [(1, 4, TorchKernels()), (2, 4, CppKernels(torch.float32, Products.FLOAT32)), (4, 2, TorchKernels())],
    ids=["alone", "two", "four with two heads of keys"],
)
def test_each_rank_keeps_its_share(ranks: int, keys: int, kernels: Kernels) -> None:
    folder, expected = model(512, keys), share_of_one(512, keys, ranks)
    for rank in range(ranks):
        one = type("One", (), {"rank": rank, "size": ranks})()
        with counted() as both:
            loaded, caches = load_and_allocate(folder, kernels, one)
        bytes_of_caches = sum(part.nbytes for cache in caches for part in cache[:2])
        assert bytes_of_caches == expected.cache == BLOCKS * sum(map(kernels.bytes_per_block, loaded.config.caches))
        assert both[0] - bytes_of_caches == expected.weights
        del loaded, caches


def resident() -> int:
    """Bytes of this process's own memory: without files that it has mapped."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def grow() -> int:
    """By how many bytes this process does, as it loads its part and uses all of its cache."""
    torch.zeros(1 << 20).normal_().sum()  # what torch itself needs first
    before = resident()
    kept: Any = load_and_allocate(model(16_384, 4), TorchKernels(), ProcessRanks())
    for cache in kept[1]:
        for part in cache[:2]:
            part.fill_(1)
    return resident() - before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says it there")
def test_the_processes_are_as_large(tmp_path: Path) -> None:
    """Half of a model of 100 MiB and its cache of 24, in each of two; a tenth more, and some for torch, is no second
    copy of anything."""
    expected = sum(share_of_one(16_384, 4, 2))
    for grown in in_ranks(2, tmp_path, grow):
        print(f"{grown / 2**20:.0f} MiB, of which {expected / 2**20:.0f} are its share")
        assert 0.9 * expected < grown < 1.1 * expected + 16 * 2**20
