"""Tiny random models in the form of Hugging Face folders, and greedy decoding on the paged cache by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headwater_engine.distributed.ranks import ALONE, Ranks
from headwater_engine.kernels.interface import BLOCK_SIZE, AttentionBatch, Kernels
from headwater_engine.models.loading import Model

VOCAB_SIZE = 320
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 16, "sliding_window": 20},
    "gemma3_text": {
        "head_dim": 32,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
"""Of each native family, what its tiny model has beside what `make_tiny` gives to all."""


def make_tiny(family: str, folder: Path, *, shards: int = 1, **overrides: Any) -> Path:
    """Write a random float32 model of the transformers `model_type` to `folder`: config, weights, byte-level tokenizer.

    `overrides` are fields of the config. The weights are larger than those of a fresh model, so that logits differ
    clearly between tokens and rounding does not change the best one.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # seconds to import, and ranks need none of it

    from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS, byte_level_tokenizer

    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": None,
            "eos_token_id": BYTE_LEVEL_EOS,
            "pad_token_id": 256,
        }
        | overrides,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.15, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0)
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    model.save_pretrained(folder, max_shard_size=size // shards + 1 if shards > 1 else "5GB")
    byte_level_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def reference_greedy(folder: Path, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """`count` greedy tokens for each prompt, by transformers in float32, one prompt at a time."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = GenerationConfig(max_new_tokens=count, do_sample=False)  # without an end of sequence
    answers = []
    for prompt in prompts:
        tokens = torch.tensor([list(prompt)])
        answer = model.generate(tokens, attention_mask=torch.ones_like(tokens))
        answers.append(answer[0, len(prompt) :].tolist())
    return answers


@torch.inference_mode()
def paged_greedy(
    model: Model,
    kernels: Kernels,
    prompts: Sequence[Sequence[int]],
    count: int,
    chunk: int = 10_000,
    ranks: Ranks = ALONE,
) -> list[list[int]]:
    """`count` greedy tokens for each prompt, all sequences in one flat batch whose blocks are interleaved.

    Each step takes up to `chunk` further tokens of every sequence, so that a long prompt shares batches with sequences
    that decode already. End-of-sequence tokens do not end anything.
    """
    config = model.config
    sequences = [list(prompt) for prompt in prompts]
    lengths = [len(prompt) + count for prompt in prompts]
    blocks = -(-max(lengths) // BLOCK_SIZE)
    model.reach(max(lengths))
    tables = [[block * len(prompts) + index + 1 for block in range(blocks)] for index in range(len(prompts))]
    caches = [kernels.allocate(blocks * len(prompts) + 1, spec) for spec in config.caches]
    done = [0] * len(prompts)
    while any(len(sequence) < length for sequence, length in zip(sequences, lengths, strict=True)):
        running = [index for index, sequence in enumerate(sequences) if len(sequence) < lengths[index]]
        spans = [range(done[index], min(done[index] + chunk, len(sequences[index]))) for index in running]
        batch = flat_batch([tables[index] for index in running], spans, kernels.device)
        tokens = [sequences[index][at] for index, span in zip(running, spans, strict=True) for at in span]
        hidden = model.forward(
            torch.tensor(tokens, device=kernels.device), batch, caches, batch.query_starts[1:].long() - 1
        )
        logits = model.logits(hidden)
        best = ranks.tell(
            logits.argmax(-1) if ranks.rank == 0 else torch.empty(len(running), dtype=torch.long)
        ).tolist()
        for index, span, token in zip(running, spans, best, strict=True):
            done[index] = span.stop
            if span.stop == len(sequences[index]):
                sequences[index].append(token)
    return [sequence[len(prompt) :] for sequence, prompt in zip(sequences, prompts, strict=True)]


def flat_batch(tables: Sequence[Sequence[int]], spans: Sequence[range], device: torch.device) -> AttentionBatch:
    """The batch in which each sequence, with its block table, computes the positions of its span."""
    slots = [
        table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
        for table, span in zip(tables, spans, strict=True)
        for at in span
    ]
    starts = [0]
    for span in spans:
        starts.append(starts[-1] + len(span))
    return AttentionBatch(
        positions=torch.tensor([at for span in spans for at in span], device=device),
        slots=torch.tensor(slots, device=device),
        block_tables=torch.tensor([list(table) for table in tables], dtype=torch.int32, device=device),
        query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        context_lengths=torch.tensor([span.stop for span in spans], dtype=torch.int32, device=device),
        longest_query=max(len(span) for span in spans),
        longest_context=max(span.stop for span in spans),
    )
