"""Decoding steps on CPUs that run as they were recorded give what they give one kernel after the other."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headwater_engine.core.engine import Engine
from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.kernels.interface import AttentionBatch, LayerCache
from headwater_engine.kernels.recording import NotRecordableError
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import resolve
from headwater_engine.quantization.stored import StoredWeight
from headwater_engine.worker.recorded import MOST_ROWS, RecordedModel
from tests.engine.batches import random as numbers
from tests.engine.greedy import greedy_answers, make_engine
from tests.engine.tiny import FAMILIES, make_tiny

KERNELS = CppKernels(torch.float32, Products.FLOAT32)
NEW_TOKENS = 20
IN_KERNELS = {"llama", "mistral", "qwen2", "qwen3"}
"""Families that compute with nothing but kernels. The others have parts in plain torch."""


class Counting:
    """A model that counts the steps of few tokens which it really runs."""

    def __init__(self, model: Model, behind: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> None:
        self.config, self.reach, self.logits, self.recordable = model.config, model.reach, model.logits, True
        self._model, self._behind, self.small = model, behind, 0

    def forward(
        self, tokens: Tensor, batch: AttentionBatch, caches: list[LayerCache], rows: Tensor | None = None
    ) -> Tensor:
        self.small += len(tokens) <= MOST_ROWS
        return self._behind(self._model.forward(tokens, batch, caches, rows))


def make_prompts(seed: int) -> list[list[int]]:
    """Some of which begin alike."""
    rng = random.Random(seed)
    beginning = [rng.randrange(256) for _ in range(40)]
    return [
        [*(beginning if n % 3 == 0 else []), *(rng.randrange(256) for _ in range(rng.choice((1, 2, 17, 60))))]
        for n in range(12)
    ]


def engine_of(model: Model, kernels: CppKernels, blocks: int = 80) -> Engine:
    return make_engine(model, kernels, blocks, reuse=True, max_num_seqs=8, max_batched_tokens=37)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blocks", [80, 14], ids=["enough blocks", "preempted"])
def test_answers_are_those_of_the_model_itself(family: str, blocks: int, tmp_path: Path) -> None:
    model = load_model(resolve(str(make_tiny(family, tmp_path))), kernels=KERNELS)
    alone, counting = Counting(model), Counting(model)
    recorded = RecordedModel(counting, KERNELS.recorder())
    engine, plain = engine_of(recorded, KERNELS, blocks), engine_of(alone, KERNELS, blocks)
    for seed in range(2):  # in the second round all that is there was recorded in the first
        before = alone.small, counting.small
        prompts = make_prompts(seed)
        assert greedy_answers(engine, prompts, NEW_TOKENS) == greedy_answers(plain, prompts, NEW_TOKENS)
    steps, run = alone.small - before[0], counting.small - before[1]
    assert run < steps / 2 if family in IN_KERNELS else run == steps
    assert blocks == 80 or engine.stats().preemptions > 0


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="activations are float32 here")
def test_answers_of_bfloat16_are_the_same_bit_by_bit(tmp_path: Path) -> None:
    kernels = CppKernels(torch.bfloat16, Products.BFLOAT16)
    model = load_model(resolve(str(make_tiny("llama", tmp_path))), kernels=kernels, dtype="bfloat16")
    recorded = RecordedModel(model, kernels.recorder())
    prompts = make_prompts(3)
    expected = greedy_answers(engine_of(model, kernels), prompts, NEW_TOKENS)
    assert greedy_answers(engine_of(recorded, kernels), prompts, NEW_TOKENS) == expected


def test_a_step_in_which_sequences_have_several_tokens_runs_as_it_was_recorded(tmp_path: Path) -> None:
    """As those of a form have, and the ends of prompts. In the first round prompts are whole, later they are found."""
    counting = Counting(load_model(resolve(str(make_tiny("llama", tmp_path))), kernels=KERNELS))
    engine = engine_of(RecordedModel(counting, KERNELS.recorder()), KERNELS)
    answers = []
    for _ in range(3):
        before, prompts = counting.small, [[7] * 9, [8] * 3, [9] * 20]
        answers.append(greedy_answers(engine, prompts, 3))
    assert counting.small == before
    assert answers[0] == answers[1] == answers[2]


def test_a_model_that_computes_with_more_than_kernels_is_found_out(tmp_path: Path) -> None:
    """Else the last layer's output would be doubled once, in the step that is recorded, and never again."""
    model = load_model(resolve(str(make_tiny("llama", tmp_path))), kernels=KERNELS)
    doubled, recorded = (Counting(model, lambda hidden: hidden.mul_(-2)) for _ in range(2))
    prompts = make_prompts(4)
    expected = greedy_answers(engine_of(doubled, KERNELS), prompts, NEW_TOKENS)
    found_out = RecordedModel(recorded, KERNELS.recorder())
    assert greedy_answers(engine_of(found_out, KERNELS), prompts, NEW_TOKENS) == expected
    assert recorded.small == doubled.small + 1


def test_what_is_still_needed_is_not_written_over() -> None:
    """Memory goes from one tensor to the next as soon as nobody has it any more, and not before."""
    x, weight = numbers(4, 32, seed=1), numbers(16, seed=2)
    product = KERNELS.linear([StoredWeight(numbers(16, 16, seed=3))])

    def run() -> Tensor:
        first = KERNELS.silu_mul(x)
        for _ in range(3):  # each of them is gone with the next
            second = KERNELS.rms_norm(product(first), weight, 1e-5)
        return KERNELS.add_rms_norm(second, first, weight, 1e-5)

    replay = KERNELS.recorder()(run)
    for seed in (5, 6):
        x.copy_(numbers(4, 32, seed=seed))
        assert torch.equal(replay(), run())


def test_recordings_share_memory_and_not_results() -> None:
    """What one gave is there until another runs; and to let go of it frees nothing that another has."""
    record, weight = KERNELS.recorder(), torch.ones(16)
    inputs = [numbers(rows, 16, seed=rows) for rows in (3, 40, 7)]

    def normed(x: Tensor) -> Callable[[], Tensor]:
        return lambda: KERNELS.rms_norm(KERNELS.rms_norm(x, weight, 1e-5), weight, 1e-5)

    replays = [record(normed(x)) for x in inputs]
    for _ in range(2):
        for x, replay in zip(inputs, replays, strict=True):
            assert torch.equal(replay(), normed(x)())
    outputs = {replay().data_ptr() for replay in replays}
    assert len(outputs) < len(replays)


def test_a_step_that_fails_leaves_its_recording_usable() -> None:
    table = numbers(16, 16, seed=1)
    lookup, _ = KERNELS.tied(StoredWeight(table))
    tokens = torch.tensor([3, 4])
    replay = KERNELS.recorder()(lambda: lookup(tokens))
    tokens[1] = 16
    with pytest.raises(IndexError, match="row 16 of 16"):
        replay()
    tokens[1] = 15
    assert torch.equal(replay(), table[tokens])


def test_what_cannot_run_again_is_not_recorded() -> None:
    record = KERNELS.recorder()
    x = numbers(16, 16, seed=1)
    with pytest.raises(NotRecordableError, match="aten"):
        record(lambda: x + 1)
    with pytest.raises(RuntimeError, match="pack cannot be recorded"):
        record(lambda: KERNELS.pack(x))
    assert torch.equal(record(lambda: KERNELS.silu_mul(x))(), KERNELS.silu_mul(x))
