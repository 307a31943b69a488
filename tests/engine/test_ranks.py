"""A model that is shared among ranks says what it says alone: two and four processes, over gloo on a CPU."""

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from headwater.openai.constraint import Constraint, Kind
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Generate, Tokenizer
from headwater_engine.core.step import Worker
from headwater_engine.distributed import shared_memory
from headwater_engine.distributed.meet import check_alike
from headwater_engine.distributed.ranks import ALONE, ProcessRanks, Ranks
from headwater_engine.distributed.shared_memory import LARGEST, SharedMemoryRanks, share_memory
from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.loading import Model, load_model
from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS, byte_level_tokenizer
from headwater_engine.quantization.stored import StoredWeight
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.sampling.ranks import bring_together
from tests.engine.greedy import make_engine, make_worker
from tests.engine.in_ranks import Session, in_ranks
from tests.engine.tiny import FAMILIES, VOCAB_SIZE, flat_batch, make_tiny, reference_greedy

TEXT = byte_level_tokenizer(VOCAB_SIZE).backend_tokenizer
FIRST = [[*range(40, 68), 7, 8], [91, 4, 250], [*range(40, 68), 9, 12], [5, 201] * 7]
"""transformers is asked for these alone."""
NEW_TOKENS = 8
CPU = torch.device("cpu")


class Room(NamedTuple):
    blocks: int
    seats: int
    budget: int
    """Tokens of a step."""


LITTLE = Room(4, 3, 13)
"""Too little for all of FIRST: some wait, and some are preempted."""
MUCH = Room(64, 24, 96)
"""For all of PROMPTS at once, in chunks."""

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


def more_prompts(count: int) -> list[list[int]]:
    """Of 1 to 52 tokens, some of which begin as others do."""
    rng = random.Random(4)
    beginning = [rng.randrange(256) for _ in range(32)]
    return [
        [*beginning[: rng.choice((0, 0, 16, 32))], *(rng.randrange(256) for _ in range(rng.randint(1, 20)))]
        for _ in range(count)
    ]


PROMPTS = FIRST + more_prompts(20)


class Said(NamedTuple):
    """By one rank."""

    logits: Tensor
    kept: int
    """Bytes of keys and values of a block, in all layers."""
    read: int
    """Numbers of the checkpoint."""
    answers: list[list[list[int]] | None]
    """By the whole engine: to the first prompts the likeliest, and drawn ones by all options; to all prompts the
    likeliest, and drawn ones by a temperature alone. None: it is not the first rank."""


def talk() -> list[tuple[Tensor, ...]]:
    ranks = ProcessRanks()
    assert_alike_or_refused(ranks)
    assert_as_they_are_without_memory(ranks)
    shared = share_memory(ranks)
    assert isinstance(shared, SharedMemoryRanks)
    return [exchange(ranks), exchange(shared), *(say_often(each) for each in (ranks, shared))]


def assert_alike_or_refused(ranks: ProcessRanks) -> None:
    check_alike(ranks, CPU, {"model": "m", "type of activations": "t"})
    for each in ("model", "type of activations"):
        others = {"model": "m", "type of activations": "t", each: str(ranks.rank)}
        with pytest.raises(LoadError, match=f"Rank 1 has another {each} than rank 0"):
            check_alike(ranks, CPU, others)


def assert_as_they_are_without_memory(ranks: ProcessRanks) -> None:
    """There is none, or a rank cannot get at it."""

    def refuse(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    for place, name in ((0, "posix_fallocate"), (1, "mmap")):
        with pytest.MonkeyPatch.context() as patch:
            if ranks.rank == place:
                patch.setattr(shared_memory.os if name == "posix_fallocate" else shared_memory.mmap, name, refuse)
            assert type(share_memory(ranks)) is ProcessRanks


def say_often(ranks: Ranks) -> tuple[Tensor, ...]:
    """Of many sizes, some of them too large to be shared, with no pause in between."""
    sizes = [1, 7, LARGEST // 4, 64, LARGEST // 4 + 1, 3] * 20
    return tuple(ranks.sum(torch.full((size,), ranks.rank + n + 0.5))[[0, -1]] for n, size in enumerate(sizes))


def exchange(ranks: Ranks) -> tuple[Tensor, ...]:
    mine = torch.tensor([[10.0 * ranks.rank, 1.0], [2.0, 3.0 + ranks.rank]])
    gathered, summed = ranks.gather(mine.t()), ranks.sum(mine)
    told = ranks.tell(torch.tensor([4, 5]) if ranks.rank == 0 else torch.zeros(2, dtype=torch.long))
    everybody = ranks.exchange(torch.tensor([[ranks.rank, 7]]))
    return summed, gathered, told, ranks.sum(torch.full((2,), 1.5 + ranks.rank, dtype=torch.bfloat16)), everybody


def say_all(folders: list[Path], meet: Path) -> list[Said]:
    session, ranks = Session(meet), ProcessRanks()
    if ranks.size == 2:  # four are over gloo
        ranks = share_memory(ranks)
        assert isinstance(ranks, SharedMemoryRanks)
    return [say(folder, ranks, session) for folder in folders]


def say(folder: Path, ranks: Ranks, session: Session | None) -> Said:
    kernels = TorchKernels()
    with numbers_read() as read:
        model = load_model(resolve(str(folder)), kernels=kernels, ranks=ranks)
    model.reach(model.config.max_positions)
    with torch.inference_mode():
        batch = flat_batch([[1, 2]], [range(len(PROMPTS[0]))], kernels.device)
        caches = [kernels.allocate(3, spec) for spec in model.config.caches]
        logits = model.logits(model.forward(torch.tensor(PROMPTS[0]), batch, caches))
        logits = bring_together(ranks, logits, model.config.vocab_size)

    found = []
    for room, ask in ((LITTLE, ask_in_little_room), (MUCH, ask_in_much_room)):
        worker = make_worker(model, kernels, room.blocks, room.seats, ranks)
        run = partial(ask, model, ranks)
        found.append(run(worker) if session is None else session.run(worker, run))
    return Said(logits.clone(), sum(map(kernels.bytes_per_block, model.config.caches)), sum(read), found)


def engine_in(room: Room, model: Model, ranks: Ranks, worker: Worker) -> Engine:
    # Ranks have steps that overlap, as on GPUs, and masks; who is alone has not, and looks at what was drawn.
    several = ranks.size > 1
    options = {
        "max_num_seqs": room.seats,
        "max_batched_tokens": room.budget,
        "depth": int(several),
        "checks": not several,
    }
    engine = make_engine(model, TorchKernels(), room.blocks, reuse=True, worker=worker, **options)
    engine.know(Tokenizer(TEXT.to_str(), (BYTE_LEVEL_EOS,)))
    return engine


def ask_in_little_room(model: Model, ranks: Ranks, worker: Worker) -> list[list[int]]:
    engine = engine_in(LITTLE, model, ranks, worker)
    form = Constraint(Kind.REGEX, "[a-z]one way[a-z]{6,}")
    found = scored(engine, temperature=0)
    found += scored(engine, form=form, temperature=0.8, top_p=0.9, repetition_penalty=1.1)
    stats = engine.stats()
    assert stats.preemptions, "there should be too few blocks"
    assert stats.prompt_tokens_cached, "the second time, prompts should be known"
    return found


def ask_in_much_room(model: Model, ranks: Ranks, worker: Worker) -> list[list[int]]:
    engine = engine_in(MUCH, model, ranks, worker)
    with gathers(ranks) as count:
        likeliest, drawn = answers(engine, PROMPTS, temperature=0), answers(engine, PROMPTS, temperature=0.8)
    assert not count, "no logits come together where the largest of the ranks' largest is enough"
    assert likeliest != drawn
    assert engine.stats().prompt_tokens_cached, "prompts should begin as others did"
    return likeliest + drawn


def scored(engine: Engine, form: Constraint | None = None, **params: Any) -> list[list[int]]:
    """To the first prompts. One wants to know how likely its prompt was, too; one has a form."""
    logprobs: list[Any] = []
    found = answers(engine, FIRST, {1: {"prompt_logprobs": 2, "logprobs": 1}}, {2: form}, logprobs, **params)
    assert len(logprobs) == len(FIRST[1])
    if form is not None:
        assert re.fullmatch("[a-z](one way)?[a-z]*", TEXT.decode(found[2]))
    return found


def answers(
    engine: Engine,
    prompts: list[list[int]],
    wants: Mapping[int, dict[str, int]] = MappingProxyType({}),
    forms: Mapping[int, Constraint | None] = MappingProxyType({}),
    logprobs: list[Any] | None = None,
    **params: Any,
) -> list[list[int]]:
    """With a seed for each prompt. `wants` and `forms`: of prompts by number. `logprobs` gets the prompts'."""
    found: dict[str, list[int]] = {str(n): [] for n in range(len(prompts))}
    for n, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=NEW_TOKENS, seed=n, ignore_eos=True, **params, **wants.get(n, {}))
        assert engine.add(Generate(id=str(n), prompt=prompt, params=sampling, constraint=forms.get(n))) is None
    while engine.has_work or engine.awaits_grammars:
        for output in engine.step():
            assert output.error is None, output.error
            found[output.id] += output.tokens
            if logprobs is not None:
                logprobs += output.prompt_logprobs or []
    engine.scheduler.check()
    return list(found.values())


@contextmanager
def gathers(ranks: Ranks) -> Iterator[list[int]]:
    """The number of columns of each tensor that ranks bring together meanwhile."""
    columns: list[int] = []
    gather = ranks.gather

    def counted(x: Tensor) -> Tensor:
        columns.append(x.shape[1])
        return gather(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ranks), "gather", lambda self, x: counted(x))
        yield columns


@contextmanager
def numbers_read() -> Iterator[list[int]]:
    """Counts of the numbers that are taken from a checkpoint."""
    counts: list[int] = []
    dense = StoredWeight.dense

    def counted(stored: StoredWeight) -> Tensor:
        counts.append(stored.tensor.numel())
        return dense(stored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredWeight, "dense", counted)
        yield counts


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("ranks")
    return [make_tiny(family, root / str(n), **options) for n, (family, options) in enumerate(VARIANTS.values())]


@pytest.fixture(scope="module")
def alone(folders: list[Path]) -> list[Said]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    said = [say(folder, ALONE, None) for folder in folders]
    for each, folder in zip(said, folders, strict=True):
        expected = reference_greedy(folder, FIRST, NEW_TOKENS)
        for found in each.answers:
            assert found is not None
            assert found[: len(FIRST)] == expected
    torch.set_num_threads(threads)
    return said


def test_ranks_sum_gather_and_tell(tmp_path: Path) -> None:
    by_rank = in_ranks(2, tmp_path, talk)
    for first, second in zip(*(said[:2] for said in by_rank), strict=True):
        assert_exchanged(first, second)
    for said in by_rank:
        for often in said[2:]:
            assert [sums.tolist() for sums in often] == [[2.0 * n + 2] * 2 for n in range(len(often))]


def assert_exchanged(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    assert torch.equal(first[0], torch.tensor([[10.0, 2.0], [4.0, 7.0]]))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], torch.tensor([[0.0, 2.0, 10.0, 2.0], [1.0, 3.0, 1.0, 4.0]]))
    assert second[1].shape == (0, 4)
    assert first[2].tolist() == second[2].tolist() == [4, 5]
    assert first[3].tolist() == second[3].tolist() == [4.0, 4.0], "activations may be bfloat16"
    assert first[4].tolist() == second[4].tolist() == [[[0, 7]], [[1, 7]]]


@pytest.mark.parametrize("count", [2, 4])
def test_a_shared_model_says_what_it_says_alone(
    count: int, folders: list[Path], alone: list[Said], tmp_path: Path
) -> None:
    by_rank = in_ranks(count, tmp_path, say_all, folders, tmp_path)
    for n, name in enumerate(VARIANTS):
        first, *others = (said[n] for said in by_rank)
        torch.testing.assert_close(first.logits, alone[n].logits, rtol=1e-3, atol=1e-3, msg=lambda m: f"{name}: {m}")  # noqa: B023
        for other in others:
            assert other.logits.shape == (0, first.logits.shape[1]), "they come together on the first rank"
        assert first.answers == alone[n].answers, name
        keys = VARIANTS[name][1].get("num_key_value_heads", 2)
        for said in (each[n] for each in by_rank):
            assert said.kept * keys <= alone[n].kept * -(-keys // count), name
            # Norms, and heads of keys where there are fewer than ranks, are everybody's.
            assert said.read * count < 1.2 * alone[n].read, name


def test_what_runs_through_transformers_cannot_be_shared(tmp_path: Path) -> None:
    class Two:
        rank, size = 0, 2

    folder = make_tiny("gpt2", tmp_path)
    with pytest.raises(LoadError, match="gpt2 runs through transformers, and cannot be shared among ranks"):
        load_model(resolve(str(folder)), kernels=TorchKernels(), ranks=Two())  # type: ignore[arg-type]
