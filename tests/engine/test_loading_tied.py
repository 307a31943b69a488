"""A config may say that head and embedding are one table, and its checkpoint that they are two: the trained one counts.

What transformers makes of such folders is the judge.
"""

import json
import logging
from pathlib import Path

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from tests.engine.tiny import FAMILIES, make_tiny, paged_greedy, reference_greedy

PROMPTS = [list(range(40, 90)), [7, 200, 31]]
NEW_TOKENS = 12
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def answers(folder: Path) -> tuple[list[list[int]], list[str]]:
    """Greedy tokens, and the tensors that a warning names."""
    kernels = TorchKernels(torch.float32)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with capture_logs() as logs:
        model = load_model(resolve(str(folder)), kernels=kernels)
    named = [name for entry in logs if entry["log_level"] == "warning" for name in entry["tensors"]]
    return paged_greedy(model, kernels, PROMPTS, NEW_TOKENS), named


def retied(folder: Path, *, said: bool) -> dict[str, torch.Tensor]:
    """The tensors of `folder`, whose config now says that head and embedding are one, or leaves it to the family."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config | ({"tie_word_embeddings": True} if said else {})))
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("family", "said"), [("llama", True), ("qwen3", True), ("gemma2", False)])
def test_a_head_that_was_trained_is_used_where_the_config_says_that_it_is_tied(
    family: str, said: bool, tmp_path: Path
) -> None:
    folder = make_tiny(family, tmp_path, **FAMILIES[family], tie_word_embeddings=False)
    tensors = retied(folder, said=said)
    assert not torch.equal(tensors[HEAD], tensors[EMBEDDING])
    tokens, named = answers(folder)
    assert tokens == reference_greedy(folder, PROMPTS, NEW_TOKENS)
    assert named == [EMBEDDING, HEAD]
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, folder / "model.safetensors", {"format": "pt"})
    assert tokens != answers(folder)[0], "a model in which the head makes no difference shows nothing"


def test_a_head_that_is_a_copy_of_the_embedding_is_no_second_table(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path, tie_word_embeddings=True)
    expected = answers(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, folder / "model.safetensors", {"format": "pt"})
    assert answers(folder) == expected == (reference_greedy(folder, PROMPTS, NEW_TOKENS), [])


def test_of_two_that_are_one_either_may_be_in_the_checkpoint(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path, tie_word_embeddings=True)
    expected = answers(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = tensors.pop(EMBEDDING)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert answers(folder) == expected == (reference_greedy(folder, PROMPTS, NEW_TOKENS), [])
