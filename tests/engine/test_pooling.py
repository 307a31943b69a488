"""Vectors and scores through scheduler, worker and pooler are those of transformers, alone and beside others."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from headwater_engine.cache.prefix_cache import PrefixCache
from headwater_engine.config import EngineSettings
from headwater_engine.core.engine import Engine
from headwater_engine.core.messages import Embed, FinishReason
from headwater_engine.core.scheduler import Scheduler
from headwater_engine.core.step import Worker
from headwater_engine.distributed.ranks import ALONE, ProcessRanks, Ranks
from headwater_engine.errors import LoadError
from headwater_engine.kernels.reference import TorchKernels
from headwater_engine.models.pooled import load_pooled
from headwater_engine.models.pooling import Pooling, plan_pooling
from headwater_engine.models.source import resolve
from headwater_engine.worker.loading import Loaded, load
from headwater_engine.worker.pooler import Pooler
from headwater_engine.worker.pooling import PoolingWorker
from tests.engine.in_ranks import Session, in_ranks
from tests.engine.tiny import make_tiny
from tests.engine.tiny_pooled import make_encoder, pooled_by

LENGTHS = (3, 1, 40, 64, 7, 17, 33)


def start(folder: Path, **flags: Any) -> tuple[Engine, Loaded]:
    settings = EngineSettings(model=str(folder), **({"num_blocks": 64, "runner": "pooling", "threads": 1} | flags))
    loaded = load(settings, lambda fraction, phase: None, lambda: None)
    scheduler = Scheduler(
        PrefixCache(loaded.blocks, loaded.block_size, reuse=loaded.reuses_prompts),
        max_num_seqs=settings.max_num_seqs,
        max_batched_tokens=settings.max_batched_tokens,
        whole_prompts=loaded.whole_prompts,
    )
    return Engine(scheduler, loaded.worker, max_model_len=loaded.max_model_len, vocab_size=loaded.vocab_size), loaded


def vectors(engine: Engine, prompts: Sequence[list[int]]) -> list[np.ndarray]:
    """All asked for at once. Checks that the engine gave all blocks back."""
    found: dict[str, np.ndarray] = {}
    for n, prompt in enumerate(prompts):
        assert engine.add(Embed(id=str(n), prompt=prompt)) is None
    while engine.has_work:
        for output in engine.step():
            assert output.finish_reason is FinishReason.STOP and output.vector is not None, output
            found[output.id] = np.frombuffer(output.vector, np.float32)
        engine.scheduler.check()
    assert engine.stats().blocks_used == 0
    return [found[str(n)] for n in range(len(prompts))]


def made_up(vocabulary: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(1)
    return [torch.randint(5, vocabulary, (length,), generator=numbers).tolist() for length in lengths]


@lru_cache(1)
def reference(folder: Path) -> Any:
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def hidden_states(folder: Path, prompt: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(reference(folder)(torch.tensor([prompt])).last_hidden_state[0])


POOLED = {"last": lambda x: x[-1], "mean": lambda x: x.mean(0), "cls": lambda x: x[0]}


def assert_alike(one: np.ndarray, other: np.ndarray) -> None:
    cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    assert cosine > 0.99999
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("bert", "mean"), ("bert", "cls"), ("bert", "last"), ("roberta", "mean"), ("xlm-roberta", "cls")],
)
def test_an_encoder_gives_the_vectors_of_transformers_alone_and_in_a_batch(
    tmp_path: Path, family: str, pooling: str
) -> None:
    folder = make_encoder(family, tmp_path, **({"pad_token_id": 1} if family != "bert" else {}))
    prompts = made_up(18)
    engine, _ = start(folder, pooling=pooling, max_batched_tokens=64)
    together = vectors(engine, prompts)
    for prompt, vector in zip(prompts, together, strict=True):
        assert_alike(vector, POOLED[pooling](hidden_states(folder, prompt)))
        np.testing.assert_allclose(vectors(engine, [prompt])[0], vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("llama", "mean"), ("llama", "cls"), ("llama", "last"), ("qwen3", "last"), ("gemma2", "mean")],
)
def test_a_decoder_gives_the_vectors_of_transformers_in_chunks_beside_others(
    tmp_path: Path, family: str, pooling: str
) -> None:
    folder = make_tiny(family, tmp_path)
    prompts = made_up(320, [*LENGTHS, 200])
    engine, _ = start(folder, pooling=pooling, max_batched_tokens=64)
    for prompt, vector in zip(prompts, vectors(engine, prompts), strict=True):
        assert_alike(vector, POOLED[pooling](hidden_states(folder, prompt)))


def test_a_prompt_as_long_as_the_context_is_taken_and_one_token_more_refused(tmp_path: Path) -> None:
    engine, loaded = start(make_tiny("llama", tmp_path), max_num_seqs=2)
    longest = [7] * loaded.max_model_len
    assert vectors(engine, [longest])[0].shape == (64,)
    refusal = engine.add(Embed(id="a", prompt=[*longest, 7]))
    assert refusal is not None and refusal.refusal is not None
    assert refusal.refusal.code == "context_length_exceeded"


@pytest.mark.parametrize(("pooling", "cached"), [("last", 48), ("mean", 0), ("cls", 0)])
def test_a_prefix_is_reused_only_where_no_vector_needs_all_of_it(tmp_path: Path, pooling: str, cached: int) -> None:
    folder = make_tiny("llama", tmp_path)
    engine, _ = start(folder, pooling=pooling)
    prompt = made_up(320, [50])[0]
    first = vectors(engine, [prompt])[0]
    assert engine.add(Embed(id="again", prompt=prompt)) is None
    outputs = [output for _ in range(3) for output in engine.step()]
    assert outputs[0].cached_tokens == cached
    assert outputs[0].vector is not None
    np.testing.assert_allclose(np.frombuffer(outputs[0].vector, np.float32), first, rtol=1e-4, atol=1e-5)


def test_a_prompt_that_was_preempted_is_pooled_anew(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path)
    engine, _ = start(folder, pooling="mean", max_batched_tokens=64, num_blocks=16)
    prompts = made_up(320, [200, 30])
    engine.add(Embed(id="0", prompt=prompts[0]))
    engine.step()
    engine.scheduler._preempt(engine.scheduler.running[0])
    engine.add(Embed(id="1", prompt=prompts[1]))
    found = {output.id: output.vector for _ in range(12) for output in engine.step()}
    for n, prompt in enumerate(prompts):
        assert_alike(np.frombuffer(found[str(n)] or b"", np.float32), hidden_states(folder, prompt).mean(0))


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "AutoModelForMaskedLM"), ("roberta", "AutoModelForMaskedLM"), ("bert", "AutoModelForPreTraining")],
)
def test_an_encoder_that_was_saved_with_another_head_loads_without_it(tmp_path: Path, family: str, kind: str) -> None:
    folder = make_encoder(family, tmp_path, kind)
    prompt = made_up(18, [9])[0]
    assert_alike(vectors(start(folder)[0], [prompt])[0], hidden_states(folder, prompt).mean(0))


def test_a_decoder_that_was_saved_without_its_head_loads_by_the_names_it_then_has(tmp_path: Path) -> None:
    make_tiny("qwen3", tmp_path / "whole")
    folder = tmp_path / "bare"
    transformers.AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(folder)
    prompt = made_up(320, [9])[0]
    assert_alike(vectors(start(folder)[0], [prompt])[0], hidden_states(tmp_path / "whole", prompt)[-1])


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_vectors_go_through_the_products_that_a_folder_has_behind_pooling(tmp_path: Path, family: str) -> None:
    torch.manual_seed(2)
    nn, size = torch.nn, 32 if family == "bert" else 64
    dense = [(nn.Linear(size, 24), nn.Tanh()), (nn.Linear(24, 9, bias=False), nn.Identity())]
    make_encoder("bert", tmp_path) if family == "bert" else make_tiny(family, tmp_path)
    engine, _ = start(pooled_by(tmp_path, "mean_tokens", dense=dense), runner="auto", max_batched_tokens=64)
    prompts = made_up(18, [5, 40, 33])
    for prompt, vector in zip(prompts, vectors(engine, prompts), strict=True):
        expected = torch.from_numpy(hidden_states(tmp_path, prompt).mean(0))
        with torch.inference_mode():
            for product, activation in dense:
                expected = activation(product(expected))
        assert_alike(vector, expected.numpy())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_cross_encoder_scores_pairs_as_transformers_does(tmp_path: Path, family: str) -> None:
    folder = make_encoder(family, tmp_path, "AutoModelForSequenceClassification", num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    first, second = made_up(18, [6, 11])
    kinds = [0] * len(first) + [1] * len(second)
    engine, _ = start(folder, runner="auto")
    with torch.inference_mode():
        expected = model(torch.tensor([first + second]), token_type_ids=torch.tensor([kinds])).logits[0].numpy()
    score = vectors(engine, [first + [18 + token for token in second]])[0]
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_with_a_head_scores_as_transformers_does(tmp_path: Path) -> None:
    make_tiny("qwen2", tmp_path / "base")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "base", num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "scores")
    prompt = made_up(320, [21])[0]
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0].numpy()
    np.testing.assert_allclose(vectors(start(tmp_path / "scores", runner="auto")[0], [prompt])[0], expected, atol=1e-4)


# Among ranks


def pool(folder: Path, kind: str, prompts: list[list[int]], ranks: Ranks, session: Session | None) -> Any:
    """All vectors at once, on the first rank."""
    plan, kernels = plan_pooling(resolve(str(folder)), "pooling"), TorchKernels()
    assert plan is not None and plan.encoder is (kind != "decoder")
    model, head = load_pooled(resolve(str(folder)), plan, kernels=kernels, ranks=ranks)
    pooler = Pooler(plan.pooling, head, 8)
    caches = [kernels.allocate(65, spec) for spec in model.config.caches]
    worker = PoolingWorker(model, pooler, caches, kernels, seats=8, longest=64, budget=128)

    def ask(worker: Worker) -> list[np.ndarray]:
        cache = PrefixCache(64, 16, reuse=False)
        scheduler = Scheduler(cache, max_num_seqs=8, max_batched_tokens=128, whole_prompts=plan.encoder)
        engine = Engine(scheduler, worker, max_model_len=64, vocab_size=model.config.vocab_size)
        return vectors(engine, prompts)

    return ask(worker) if session is None else session.run(worker, ask)


def pool_among_ranks(folders: dict[str, Path], prompts: dict[str, list[list[int]]], meet: Path) -> list[Any]:
    session, ranks = Session(meet), ProcessRanks()
    return [pool(folder, kind, prompts[kind], ranks, session) for kind, folder in folders.items()]


def test_a_model_that_is_shared_among_ranks_gives_the_vectors_that_it_gives_alone(tmp_path: Path) -> None:
    folders = {
        "vectors": make_encoder("bert", tmp_path / "vectors", num_attention_heads=4),
        "scores": make_encoder("bert", tmp_path / "scores", "AutoModelForSequenceClassification", num_labels=1),
        "uneven": make_encoder("roberta", tmp_path / "uneven", num_attention_heads=3, hidden_size=36, pad_token_id=1),
        "decoder": make_tiny("llama", tmp_path / "decoder"),
    }
    prompts = {kind: made_up(320 if kind == "decoder" else 18, LENGTHS[:4]) for kind in folders}
    first, second = in_ranks(2, tmp_path, pool_among_ranks, folders, prompts, tmp_path)
    assert second == [None] * len(folders)
    for (kind, folder), found in zip(folders.items(), first, strict=True):
        for one, other in zip(found, pool(folder, kind, prompts[kind], ALONE, None), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=kind)


# What a folder says


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [("cls_token", Pooling.CLS), ("mean_tokens", Pooling.MEAN), ("lasttoken", Pooling.LAST)],
)
def test_a_folder_of_sentence_transformers_says_how_it_pools(tmp_path: Path, mode: str, pooling: Pooling) -> None:
    plan = plan_pooling(resolve(str(pooled_by(make_tiny("llama", tmp_path), mode, normalize=False, longest=48))))
    assert plan is not None
    assert (plan.pooling, plan.normalized, plan.longest, plan.encoder) == (pooling, False, 48, False)


def test_a_folder_without_such_files_generates_unless_told_otherwise(tmp_path: Path) -> None:
    folder = resolve(str(make_tiny("llama", tmp_path)))
    assert plan_pooling(folder) is None
    plan = plan_pooling(folder, "pooling")
    assert plan is not None and plan.pooling is Pooling.LAST and plan.normalized


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: pooled_by(folder, "max_tokens"), "pools by"),
        (lambda folder: (folder / "modules.json").write_text('[{"type": "a.LSTM"}]'), "'LSTM'"),
        (lambda folder: (folder / "modules.json").write_text('[{"type": "a.Dense"}]'), "in this order"),
        (lambda folder: dense_of(folder, torch.nn.Linear(32, 8), torch.nn.SiLU()), "SiLU"),
        (lambda folder: dense_of(folder, torch.nn.Linear(31, 8), torch.nn.ReLU()), "those before it have 32"),
        (lambda folder: dense_of(folder, use_residual=True), "in whose place"),
        (lambda folder: dense_of(folder, module_input_name="token_embeddings"), "in whose place"),
        (lambda folder: dense_of(folder, out_features="8"), "out_features must be a whole number"),
        (lambda folder: (dense_of(folder) / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "modules.json").write_text("{}"), "must be a JSON list"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(tmp_path: Path, break_it: Any, message: str) -> None:
    break_it(make_encoder("bert", tmp_path))
    with pytest.raises(LoadError, match=message):
        plan_pooling(resolve(str(tmp_path)))


def dense_of(
    folder: Path,
    product: torch.nn.Linear = torch.nn.Linear(32, 8),  # noqa: B008
    activation: torch.nn.Module = torch.nn.Tanh(),  # noqa: B008
    **fields: Any,
) -> Path:
    """Give the folder such a part, of whose file some fields are others. Returns the part's own folder."""
    file = pooled_by(folder, "mean_tokens", dense=[(product, activation)]) / "2_Dense" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return file.parent


def test_a_head_and_a_product_behind_pooling_are_refused_together(tmp_path: Path) -> None:
    dense_of(make_encoder("bert", tmp_path, "AutoModelForSequenceClassification", num_labels=1))
    with pytest.raises(LoadError, match="a head and a Dense"):
        plan_pooling(resolve(str(tmp_path)))


def test_an_encoder_generates_no_text(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no text"):
        plan_pooling(resolve(str(make_encoder("bert", tmp_path))), "generate")


def test_a_head_of_several_classes_is_refused(tmp_path: Path) -> None:
    folder = make_encoder("bert", tmp_path, "AutoModelForSequenceClassification", num_labels=3)
    with pytest.raises(LoadError, match="3 classes"):
        plan_pooling(resolve(str(folder)))
