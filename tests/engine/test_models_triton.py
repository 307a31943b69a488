"""Tiny models through the whole engine with Triton's kernels: on a GPU, or in Triton's interpreter without one.

What `tests/engine/gpu` does at length on a GPU is here short enough for the interpreter.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from headwater_engine.errors import LoadError
from headwater_engine.kernels import find_device
from headwater_engine.kernels.prefixes import Group, find_groups
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.worker import inputs
from headwater_engine.worker.trial import run_trial
from headwater_engine.worker.worker import ModelWorker
from tests.engine.greedy import greedy_answers, make_engine
from tests.engine.tiny import make_tiny, reference_greedy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPTS = [[7, 201, 33, 9, 58, 140, 22, 6], [91, 4, 250]]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 5}),
        ("qwen3", {"head_dim": 32}),
        ("gemma2", {"head_dim": 16, "sliding_window": 5}),
        ("olmo2", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_greedy_tokens_are_those_of_transformers(family: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """olmo2 runs by the modules of transformers, with our attention in them."""
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    from headwater_engine.kernels.gpu import TritonKernels

    folder = make_tiny(family, tmp_path, num_hidden_layers=2, **overrides)
    kernels = TritonKernels(torch.float32, DEVICE)
    model = load_model(resolve(str(folder)), kernels=kernels)
    engine = make_engine(model, kernels, 7, max_num_seqs=2, max_batched_tokens=6, reuse=True)
    worker = engine._worker
    assert isinstance(worker, ModelWorker)
    run_trial(worker, seats=2, budget=3, longest=20)
    assert greedy_answers(engine, PROMPTS, 4) == reference_greedy(folder, PROMPTS, 4)


def test_requests_that_share_a_prefix_say_what_each_says_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    from headwater_engine.kernels.gpu import TritonKernels

    found: list[Group] = []

    def find_short_ones(*arguments: Any, **options: Any) -> list[Group]:
        groups = find_groups(*arguments, worth=16, **options)
        found.extend(groups)
        return groups

    monkeypatch.setattr(inputs, "find_groups", find_short_ones)
    folder = make_tiny("llama", tmp_path, num_hidden_layers=1)
    kernels = TritonKernels(torch.float32, DEVICE)
    engine = make_engine(
        load_model(resolve(str(folder)), kernels=kernels),
        kernels,
        20,
        max_num_seqs=3,
        max_batched_tokens=40,
        reuse=True,
    )
    prompts = [[*range(40, 75), last] for last in (7, 8, 9)]
    assert greedy_answers(engine, prompts, 4) == reference_greedy(folder, prompts, 4)
    assert any(len(group.sequences) == 3 and group.blocks == 2 for group in found)


def test_a_device_is_named_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(LoadError, match=r"--device cuda: torch .* finds no NVIDIA GPU"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:0")
    with pytest.raises(LoadError, match=r"Each rank needs a GPU of its own, and this machine has 1\."):
        find_device("cuda", 1)
    assert find_device("cpu") == torch.device("cpu")
