"""Ranks whose steps overlap hold the same rows, and say what one rank says whose steps do not.

The ranks are threads; what they do is what the processes of `headwater serve` do on GPUs: the first one has the engine,
at depth 1, and the others hear its steps. A stand-in for CUDA graphs (recording.py) replays sums, too.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import invariant, run_state_machine_as_test
from torch import Tensor

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate
from headwater_engine.core.step import Seat, Span, Step
from headwater_engine.distributed.ranks import Ranks
from headwater_engine.errors import RankError
from headwater_engine.grammar.compiler import Compiler, Grammar
from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, LayerCache
from headwater_engine.kernels.prefixes import Group, find_groups
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import resolve
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.worker import inputs
from headwater_engine.worker.graphs import ladder
from headwater_engine.worker.rank import LeadingWorker, StepTeller
from headwater_engine.worker.worker import ModelWorker
from tests.engine.checked_worker import CheckedWorker
from tests.engine.greedy import make_worker
from tests.engine.recording import RecordableKernels, record
from tests.engine.test_overlap import BLOCKS, BUDGET, SEATS, TOKENIZER, Overlapped, engine_of, message
from tests.engine.thread_ranks import ThreadGroup
from tests.engine.tiny import VOCAB_SIZE, make_tiny

JUMPING = {2: "([a-z] ong){40}", 1: "([a-z] ){40}", 4: "([a-z] on){40}"}
"""Forms of those that ask like these; the last one wants log-probabilities, and so has all of its tokens drawn."""


class SharingKernels(RecordableKernels):
    """That take a prefix which sequences share from the first of them: were it another one, so would be the answers."""

    prefix_groups = 2

    def paged_attention(
        self, queries: Tensor, cache: LayerCache, batch: AttentionBatch, *, scale: float, **options: Any
    ) -> Tensor:
        if batch.prefixes is None:
            return super().paged_attention(queries, cache, batch, scale=scale, **options)
        members, starts, lengths, _ = batch.prefixes
        tables, places = batch.block_tables.clone(), torch.arange(len(members))
        for group in range(self.prefix_groups):
            inside = (places >= starts[group]) & (places < starts[group + 1])
            belongs = torch.zeros_like(members).index_add_(0, members, inside.int()).bool()
            shared = torch.arange(tables.shape[1]) * BLOCK_SIZE < lengths[group]
            first = tables[members[starts[group].clamp(max=len(members) - 1)]]
            tables = torch.where(belongs.unsqueeze(1) & shared, first, tables)
        alone = AttentionBatch(
            batch.positions, batch.slots, tables, batch.query_starts, batch.context_lengths, 1, batch.longest_context
        )
        return super().paged_attention(queries, cache, alone, scale=scale, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen2", tmp_path_factory.mktemp("model"), num_hidden_layers=1, hidden_size=32)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """All of it."""
    return load_model(resolve(str(folder)), kernels=RecordableKernels())


def rank(folder: Path, ranks: Ranks, *, records: bool) -> ModelWorker:
    kernels = SharingKernels()
    part = load_model(resolve(str(folder)), kernels=kernels, ranks=ranks)
    worker = make_worker(part, kernels, BLOCKS, SEATS, ranks, BUDGET)
    if records:
        worker.record(record, ladder(SEATS), spare_block=BLOCKS, tell=lambda fraction: None)
    return worker


Case = tuple[Generate, Grammar]


def answers(engine: Engine, cases: Sequence[Case], look: Callable[[], object] = lambda: None) -> dict[str, list[int]]:
    """Of all at once; none waits for its grammar, which would take as long as it likes. `look` follows each step."""
    for asked, grammar in cases:
        engine._queue(asked, grammar.begin())
    found: dict[str, list[int]] = {asked.id: [] for asked, _ in cases}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            found[output.id] += output.tokens
        look()
    return found


def test_forms_with_jumps_and_few_blocks_give_the_answers_of_one_rank(
    folder: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where blocks are short the engine waits for a step before it plans the next, which tells what came of it.

    A rank that then put forced tokens in the place of the drawn one would find embeddings of others: that of a space,
    which is forced, is the second rank's, those of letters are the first one's.
    """
    compiler = Compiler(TOKENIZER.text, TOKENIZER.eos_token_ids, VOCAB_SIZE)
    grammars = {asked: compiler.compile(Constraint(Kind.REGEX, regex)).result() for asked, regex in JUMPING.items()}
    compiler.close()
    cases = [(message(str(n), n, asked, 60), grammars[asked]) for n, asked in zip(range(7), cycle(grammars))]
    told: list[Step] = []
    with ThreadGroup(tmp_path, 2, partial(rank, folder, records=False)) as group:
        tell = group.worker.launch

        def launch(step: Step) -> None:
            told.append(step)
            tell(step)

        monkeypatch.setattr(group.worker, "launch", launch)
        engine = engine_of(model, worker=group.worker)
        together = answers(engine, cases, group.compare)
    for case in cases:
        alone = engine_of(model, blocks=40, depth=0, jumps=False)
        assert answers(alone, [case]).items() <= together.items()
    assert engine.stats().preemptions > 0
    assert {(0, True), (1, True)} <= {(step.under_way, bool(step.given)) for step in told}


class OverlappedRanks(Overlapped):
    """As `Overlapped`, by several ranks, whose rows are looked at as they take each step in."""

    group: ThreadGroup

    @invariant()
    def ranks_hold_the_same_rows(self) -> None:
        self.group.compare()


def test_whatever_comes_ranks_hold_the_same_rows_and_give_the_answers_of_one(
    folder: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[int] = []

    def groups(*args: Any, **options: Any) -> list[Group]:
        found = find_groups(*args, worth=BLOCK_SIZE, **options)
        shared.append(len(found))
        return found

    monkeypatch.setattr(inputs, "find_groups", groups)
    with ThreadGroup(tmp_path, 2, partial(rank, folder, records=True)) as group:
        OverlappedRanks.model, OverlappedRanks.alone = model, {}
        OverlappedRanks.group, OverlappedRanks.worker = group, group.worker
        examples = settings(max_examples=10, stateful_step_count=12, deadline=None)
        run_state_machine_as_test(OverlappedRanks, settings=examples)
    assert any(shared), "no prefix was ever shared"


def test_a_step_that_is_given_up_between_its_halves_ends_the_group() -> None:
    """Say, since no mask could be made. Alone, an engine would try it again; here others are in the middle of it."""
    told: list[Step] = []
    worker = LeadingWorker(CheckedWorker(4), cast("StepTeller", SimpleNamespace(tell=told.append)))
    step = Step(1, [], [Seat(0, [1], 0, SamplingParams(max_tokens=2))], [(0, [0])], [], [Span(0, 0, 1, 1, 0)])
    worker.launch(step)
    worker.sample().wait()
    worker.launch(msgspec.structs.replace(step, number=2))
    with pytest.raises(RankError, match="was given up"):
        worker.launch(msgspec.structs.replace(step, number=3))
    assert [each.number for each in told] == [1, 2]
