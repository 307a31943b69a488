"""What grammars cost on CPU, with 0, 8 and 32 of 32 rows constrained, and what jumps save.

    python benchmarks/constrained.py FOLDER [--dtype bfloat16] [--steps 150] [--rounds 3] [--examples]

FOLDER is a Hugging Face folder. Prompts are words in any order, which ask for no form at all, or with --examples lists
of records of the form, which the model then goes on with. Several engines share one model and its weights, each with
the same prompts and a KV cache of its own; they take turns of five steps, in another order each time, so that a machine
that is slower for a while is slower for all. A turn ends when its threads have no mask left to make, so that none is
made in another's time. Steps are compared without jumps, so that all compute 32 tokens: medians of the turns, and what
a turn takes beside the one without grammars that was next to it. With jumps, as engines serve, steps give more tokens
and take longer, so that what counts is the time for 32 of them. Then 32 constrained requests are answered from their
prompts to their ends with jumps and without, in turns, and it is counted how many answers are the same. Prints
Markdown.
"""

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate, Tokenizer
from headwater_engine.core.scheduler import Scheduler
from headwater_engine.kernels import select
from headwater_engine.kernels.cpu import CppKernels
from headwater_engine.kernels.interface import BLOCK_SIZE
from headwater_engine.models.generation import load_generation_config
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import load_tokenizer
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker.memory import keep_freed_memory
from headwater_engine.worker.recorded import RecordedModel
from headwater_engine.worker.worker import ModelWorker

ROWS = 32
CONSTRAINED = {
    "0": (0, False),
    "0, another engine": (0, False),
    "8": (8, False),
    "32": (32, False),
    "8, with jumps": (8, True),
    "32, with jumps": (32, True),
}
"""Rows, and whether there are jumps. Two engines without grammars show by how much two of a kind differ: their caches
lie elsewhere in memory."""
PROMPT = 256
"""Tokens."""
ASKED: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "temperature 0.7, top_p 0.9": {"temperature": 0.7, "top_p": 0.9},
}


RECORDS: tuple[dict[str, Any], ...] = (
    {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "email": {"type": "string", "maxLength": 40},
        "married": {"type": "boolean"},
    },
    {
        "title": {"type": "string", "maxLength": 60},
        "category": {"enum": ["politics", "sports", "science", "culture"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "keywords": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    },
    {
        "order_id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{6}$"},
        "shipping_address": {"type": "string", "maxLength": 60},
        "delivery_date": {"type": "string", "format": "date"},
        "quantity": {"type": "integer", "minimum": 1},
    },
)
"""To be found in a text, as users ask for them."""
EXAMPLES: tuple[dict[str, Any], ...] = (
    {"name": "Anna Berzina", "age": 31, "email": "anna@example.com", "married": True},
    {"title": "The first snow", "category": "science", "confidence": 0.8, "keywords": ["snow", "winter"]},
    {"order_id": "LV-204118", "shipping_address": "12 Main Street", "delivery_date": "2026-11-28", "quantity": 3},
)
TURN = 5
"""Steps."""
ENDLESS = 500
"""Records in a list that has no end before the answer's last token."""


def form(number: int, records: int) -> Constraint:
    properties = RECORDS[number % len(RECORDS)]
    item = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    schema = {"type": "array", "items": item, "minItems": records, "maxItems": records}
    return Constraint(Kind.JSON_SCHEMA, json.dumps(schema))


class Bench:
    """A model, and what engines need to be made of it."""

    def __init__(self, folder: str, dtype: str, longest: int, *, examples: bool = False) -> None:
        source = resolve(folder)
        tokenizer = load_tokenizer(source)
        self._kernels = select(getattr(torch, dtype))
        assert isinstance(self._kernels, CppKernels)
        model = load_model(source, kernels=self._kernels, dtype=dtype)  # type: ignore[arg-type]
        self._model: Model = RecordedModel(model, self._kernels.recorder())
        ends = tuple(load_generation_config(source)["eos_token_id"])
        self._tokenizer = Tokenizer(tokenizer.backend_tokenizer.to_str(), ends)
        self._longest = longest
        words = tokenizer("Anna, 31, writes to the office in Riga about order LV-204118. ")["input_ids"]
        rng = random.Random(0)
        self._prompts = [(rng.sample(words, len(words)) * PROMPT)[:PROMPT] for _ in range(ROWS)]
        if examples:
            lists = (json.dumps([EXAMPLES[row % len(RECORDS)]] * 2) + "\n" for row in range(ROWS))
            self._prompts = [(tokenizer(each)["input_ids"] * PROMPT)[-PROMPT:] for each in lists]

    def engine(self, *, jumps: bool) -> Engine:
        blocks = ROWS * (-(-self._longest // BLOCK_SIZE) + 1) + 8
        cache = PrefixCache(blocks, BLOCK_SIZE, reuse=False)
        caches = [self._kernels.allocate(blocks, spec) for spec in self._model.config.caches]
        worker = ModelWorker(self._model, caches, self._kernels, seats=ROWS, longest=self._longest, budget=512)
        scheduler = Scheduler(cache, max_num_seqs=ROWS, max_batched_tokens=512)
        vocabulary = self._model.config.vocab_size
        longest = self._longest
        engine = Engine(scheduler, worker, max_model_len=longest, vocab_size=vocabulary, jumps=jumps, checks=True)
        engine.know(self._tokenizer)
        return engine

    def add(self, engine: Engine, constrained: int, records: int, asked: Mapping[str, float]) -> None:
        """ROWS requests."""
        for number, prompt in enumerate(self._prompts):
            constraint = form(number, records) if number < constrained else None
            params = SamplingParams(max_tokens=self._longest, ignore_eos=True, seed=number, **asked)  # type: ignore[arg-type]
            assert engine.add(Generate(id=str(number), prompt=prompt, params=params, constraint=constraint)) is None

    def begin(self, engine: Engine, constrained: int, asked: Mapping[str, float]) -> None:
        """ROWS requests, as far as all prompts are read, and all grammars made."""
        self.add(engine, constrained, ENDLESS, asked)
        while len(engine.step()) < ROWS or engine.awaits_grammars:
            pass

    def answer(self, engine: Engine, records: int, asked: Mapping[str, float]) -> "Run":
        """ROWS constrained requests, from their prompts to their ends."""
        answers: dict[str, list[int]] = {}
        begun, steps = time.perf_counter(), 0
        self.add(engine, ROWS, records, asked)
        while engine.has_work or engine.awaits_grammars:
            outputs = engine.step()
            steps += bool(outputs)
            for output in outputs:
                assert output.error is None and output.refusal is None
                answers.setdefault(output.id, []).extend(output.tokens)
        return Run(time.perf_counter() - begun, steps, answers)


class Run(NamedTuple):
    seconds: float
    steps: int
    answers: dict[str, list[int]]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers.values()))


def take_turns(bench: Bench, asked: Mapping[str, float], steps: int) -> dict[str, list[float]]:
    """Seconds for ROWS tokens in each turn, by how many rows are constrained."""
    engines = {name: bench.engine(jumps=jumps) for name, (_, jumps) in CONSTRAINED.items()}
    for name, engine in engines.items():
        bench.begin(engine, CONSTRAINED[name][0], asked)
    taken: dict[str, list[float]] = {name: [] for name in CONSTRAINED}
    order = random.Random(0)
    for _ in range(steps // TURN):
        for name in order.sample(list(CONSTRAINED), len(CONSTRAINED)):
            taken[name].append(take_turn(engines[name]))
    for engine in engines.values():
        engine.close()
    return taken


def take_turn(engine: Engine) -> float:
    """Seconds for ROWS tokens."""
    begun = time.perf_counter()
    tokens = 0
    while tokens < TURN * ROWS:  # a token whose mask was late comes a step later
        outputs = engine.step()
        tokens += sum(len(output.tokens) for output in outputs)
        assert not any(output.finish_reason for output in outputs), [
            output for output in outputs if output.finish_reason
        ]
    for request in engine.scheduler.running:
        if request.matcher is not None:
            request.matcher.wait(60)
    return (time.perf_counter() - begun) / tokens * ROWS


def compare_jumps(bench: Bench, asked: Mapping[str, float], rounds: int) -> Iterator[tuple[Run, Run]]:
    """Of each round: without jumps, and with them."""
    without, jumping = bench.engine(jumps=False), bench.engine(jumps=True)
    for engine in (without, jumping):
        bench.answer(engine, 1, asked)  # both learn what their steps take
    for number in range(rounds):
        order = (without, jumping) if number % 2 else (jumping, without)
        found = {engine: bench.answer(engine, 3, asked) for engine in order}
        yield found[without], found[jumping]
    without.close()
    jumping.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="Hugging Face folder of the model")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--steps", type=int, default=150, help="of each engine")
    parser.add_argument("--rounds", type=int, default=3, help="of answers with and without jumps; 0: none")
    parser.add_argument("--examples", action="store_true", help="prompts show what the form is")
    options = parser.parse_args()
    keep_freed_memory()
    # Each engine's prompts take one token the longer the later its turn to begin: none may come to its end.
    longest = max(PROMPT + 2 * ROWS + options.steps, 1024)
    bench = Bench(options.folder, options.dtype, longest, examples=options.examples)
    gc.collect()
    gc.freeze()  # as the engine's process does
    print("| asked | constrained of 32 | ms for 32 tokens | least | beside 0 constrained |\n|---|---|---|---|---|")
    for name, asked in ASKED.items():
        taken = take_turns(bench, asked, options.steps)
        for constrained, seconds in taken.items():
            ratio = statistics.median(one / other for one, other in zip(seconds, taken["0"], strict=True))
            median, least = 1e3 * statistics.median(seconds), 1e3 * min(seconds)
            print(f"| {name} | {constrained} | {median:.2f} | {least:.2f} | {100 * (ratio - 1):+.1f} % |", flush=True)
    if not options.rounds:
        return
    print("\n| asked | tokens | tokens/s, without jumps | with | ratio | steps, without | with | the same |", end="\n|")
    print("---|" * 8)
    for name, asked in ASKED.items():
        for before, after in compare_jumps(bench, asked, options.rounds):
            speeds = f"{before.tokens / before.seconds:.0f} | {after.tokens / after.seconds:.0f}"
            ratio = before.seconds / after.seconds
            same = sum(answer == after.answers[each] for each, answer in before.answers.items())
            steps = f"{before.steps} | {after.steps} | {same} of {ROWS}"
            print(f"| {name} | {before.tokens} | {speeds} | {ratio:.2f} | {steps} |", flush=True)


if __name__ == "__main__":
    main()
