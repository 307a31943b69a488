"""A model that is shared among ranks says what it says alone: two and four processes, over gloo on a CPU."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from headwater_engine.distributed.ranks import ALONE, ProcessRanks, Ranks
from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from tests.engine.tiny import FAMILIES, flat_batch, make_tiny, paged_greedy, reference_greedy

PROMPTS = [[7, 201, 33, 9, 58, 140, 22, 6] * 4, [91, 4, 250]]
NEW_TOKENS = 8
LONGEST_WAIT = 240  # seconds: a guard, where a rank is missing all others wait

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, options) for family, options in FAMILIES.items()},
    "one head of keys": ("llama", {"num_key_value_heads": 1}),
    "heads that do not divide": ("llama", {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "a vocabulary that does not divide, biases": (
        "llama",
        {"vocab_size": 323, "attention_bias": True, "mlp_bias": True, "intermediate_size": 99},
    ),
    "a tied vocabulary that does not divide": ("llama", {"vocab_size": 321, "tie_word_embeddings": True}),
}


class Said(NamedTuple):
    """By one rank."""

    tokens: list[list[int]]
    logits: Tensor
    kept: int
    """Bytes of keys and values of a block, in all layers."""


def in_ranks(count: int, store: Path, run: Callable[..., Any], *args: Any) -> list[Any]:
    """What `run(*args)` returns in each of `count` processes that are a group."""
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_join, rank, count, str(store), run, *args) for rank in range(count)]
        return [future.result(LONGEST_WAIT) for future in futures]


def _join(rank: int, count: int, store: str, run: Callable[..., Any], *args: Any) -> Any:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=LONGEST_WAIT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timeout)
    try:
        return run(*args)
    finally:
        dist.destroy_process_group()


def talk() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ranks = ProcessRanks()
    mine = torch.tensor([[10.0 * ranks.rank, 1.0], [2.0, 3.0 + ranks.rank]])
    gathered, summed = ranks.gather(mine.t()), ranks.sum(mine)
    told = ranks.tell(torch.tensor([4, 5]) if ranks.rank == 0 else torch.zeros(2, dtype=torch.long))
    return summed, gathered, told, ranks.sum(torch.full((2,), 1.5 + ranks.rank, dtype=torch.bfloat16))


def say_all(folders: list[Path]) -> list[Said]:
    return [say(folder, ProcessRanks()) for folder in folders]


def say(folder: Path, ranks: Ranks) -> Said:
    kernels = TorchKernels()
    model = load_model(resolve(str(folder)), kernels=kernels, ranks=ranks)
    tokens = paged_greedy(model, kernels, PROMPTS, NEW_TOKENS, 7, ranks)
    with torch.inference_mode():
        batch = flat_batch([[1, 2]], [range(len(PROMPTS[0]))], kernels.device)
        caches = [kernels.allocate(3, spec) for spec in model.config.caches]
        logits = model.logits(model.forward(torch.tensor(PROMPTS[0]), batch, caches))
    return Said(tokens, logits.clone(), sum(map(kernels.bytes_per_block, model.config.caches)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("ranks")
    return [make_tiny(family, root / str(n), **options) for n, (family, options) in enumerate(VARIANTS.values())]


@pytest.fixture(scope="module")
def alone(folders: list[Path]) -> list[Said]:
    return [say(folder, ALONE) for folder in folders]


def test_ranks_sum_gather_and_tell(tmp_path: Path) -> None:
    first, second = in_ranks(2, tmp_path / "store", talk)
    assert torch.equal(first[0], torch.tensor([[10.0, 2.0], [4.0, 7.0]]))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], torch.tensor([[0.0, 2.0, 10.0, 2.0], [1.0, 3.0, 1.0, 4.0]]))
    assert second[1].shape == (0, 4)
    assert first[2].tolist() == second[2].tolist() == [4, 5]
    assert first[3].tolist() == second[3].tolist() == [4.0, 4.0], "activations may be bfloat16"


@pytest.mark.parametrize("count", [2, 4])
def test_a_shared_model_says_what_it_says_alone(
    count: int, folders: list[Path], alone: list[Said], tmp_path: Path
) -> None:
    by_rank = in_ranks(count, tmp_path / "store", say_all, folders)
    for n, (name, folder) in enumerate(zip(VARIANTS, folders, strict=True)):
        first, *others = (said[n] for said in by_rank)
        assert first.tokens == reference_greedy(folder, PROMPTS, NEW_TOKENS), name
        torch.testing.assert_close(first.logits, alone[n].logits, rtol=1e-3, atol=1e-3, msg=lambda m: f"{name}: {m}")  # noqa: B023
        for other in others:
            assert other.tokens == first.tokens, name
            assert other.logits.shape == (0, first.logits.shape[1]), "only the first rank samples"
        assert max(said[n].kept for said in by_rank) < alone[n].kept or "one head" in name


def test_what_runs_through_transformers_cannot_be_shared(tmp_path: Path) -> None:
    class Two:
        rank, size = 0, 2

    folder = make_tiny("gpt2", tmp_path)
    with pytest.raises(LoadError, match="gpt2 runs through transformers, and cannot be shared among ranks"):
        load_model(resolve(str(folder)), kernels=TorchKernels(), ranks=Two())  # type: ignore[arg-type]
