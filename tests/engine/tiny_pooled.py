"""Tiny random models that make vectors or scores, in the form of Hugging Face's and sentence-transformers' folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ("the", "river", "is", "long", "a", "stone", "in", "water", "what", "who", "##s", "##ing", "run")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_encoder(family: str, folder: Path, kind: str = "AutoModel", **overrides: Any) -> Path:
    """A random float32 encoder of the transformers `model_type`; `kind`: the class of transformers that saves it."""
    import transformers

    config = transformers.AutoConfig.for_model(
        family,
        **{
            "vocab_size": len(SPECIALS) + len(WORDS),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 70,
            "pad_token_id": 0,
            "type_vocab_size": 2,
        }
        | overrides,
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3, mean=1.0 if "LayerNorm.weight" in name else 0.0)
    model.save_pretrained(folder)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


Dense = tuple[torch.nn.Linear, torch.nn.Module]
"""A product, and what its outputs go through."""


def save_dense(folder: Path, product: torch.nn.Linear, activation: torch.nn.Module) -> None:
    """As sentence-transformers' `Dense.save` does."""
    folder.mkdir()
    save_file({f"linear.{name}": tensor for name, tensor in product.state_dict().items()}, folder / "model.safetensors")
    config = {
        "in_features": product.in_features,
        "out_features": product.out_features,
        "bias": product.bias is not None,
        "activation_function": f"{type(activation).__module__}.{type(activation).__name__}",
    }
    (folder / "config.json").write_text(json.dumps(config))


def word_tokenizer() -> Tokenizer:
    """As BERT's: pieces of words, [CLS] before and [SEP] behind a text, and the second one's type is 1."""
    vocabulary = {word: index for index, word in enumerate((*SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def pooled_by(
    folder: Path, mode: str, *, normalize: bool = True, longest: int | None = None, dense: Sequence[Dense] = ()
) -> Path:
    """Make a folder one of sentence-transformers, which pools by `mode`, such as `mean_tokens`."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    for number, (product, activation) in enumerate(dense, 2):
        modules.append(("Dense", f"{number}_Dense"))
        save_dense(folder / f"{number}_Dense", product, activation)
    modules += [("Normalize", f"{len(modules)}_Normalize")] if normalize else []
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
                for index, (name, path) in enumerate(modules)
            ]
        )
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{each}": each == mode for each in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    if longest is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    return folder
