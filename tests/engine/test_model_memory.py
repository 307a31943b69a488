"""What a model takes of memory: its weights once, and angles of the positions that sequences get to."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import Kernels
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.worker.worker import ModelWorker
from tests.engine.tiny import make_tiny

VOCABULARY, HIDDEN = 16_384, 64


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes of tensors that were made meanwhile and are still there, appended at the end."""
    before = storages()
    found: list[int] = []
    yield found
    found.append(sum(size for at, size in storages().items() if at not in before))


def storages() -> dict[int, int]:
    gc.collect()
    tensors = (each for each in gc.get_objects() if issubclass(type(each), torch.Tensor))
    parts = (each.untyped_storage() for each in tensors)
    return {part.data_ptr(): part.nbytes() for part in parts}


@pytest.mark.parametrize(
    "kernels",
    [CppKernels(torch.bfloat16, Products.FLOAT32), CppKernels(torch.float32, Products.FLOAT32), TorchKernels()],
    ids=["bfloat16", "float32", "torch"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_is_in_memory_once_where_head_and_embedding_are_one(
    kernels: Kernels, tied: bool, tmp_path: Path
) -> None:
    folder = make_tiny("llama", tmp_path, vocab_size=VOCABULARY, num_hidden_layers=1, tie_word_embeddings=tied)
    bfloat16 = "bfloat16" in kernels.name
    with counted() as found:
        model = load_model(resolve(str(folder)), kernels=kernels, dtype="bfloat16" if bfloat16 else "float32")
    tables = found[0] / (VOCABULARY * HIDDEN * (2 if bfloat16 else 4))
    assert (1 if tied else 2) < tables < (1.1 if tied else 2.1), "the rest of the model is small"
    assert model.config.vocab_size == VOCABULARY


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_angles_are_kept_of_the_positions_that_sequences_get_to(family: str, tmp_path: Path) -> None:
    """Not of all that the model was trained for: a million of 128 dimensions are half a gibibyte."""
    folder = make_tiny(family, tmp_path, num_hidden_layers=1, max_position_embeddings=1_000_000, head_dim=32)
    kernels = TorchKernels()
    with counted() as weights:
        model = load_model(resolve(str(folder)), kernels=kernels)
    assert model.config.max_positions == 1_000_000
    longest, rotations = 4096, 2 if family == "gemma3_text" else 1
    with counted() as found:
        worker = ModelWorker(model, [], kernels, seats=1, longest=longest, budget=16)
    angles = rotations * longest * 32 * 4  # a cosine and a sine for each two dimensions
    assert angles <= found[0] < 1.5 * angles
    assert weights[0] < 2**20
    del worker
