"""The tokenizer inside a GGUF file.

Byte-level BPE (Llama 3, Qwen, SmolLM2) is built from the file's vocabulary and merges. How text is cut before merging
is not in the file: it names a scheme, and `_pre_tokenizer` knows what the name means. SentencePiece vocabularies
(Llama 2, Mistral) go through transformers' converter.
"""

from pathlib import Path
from typing import Any

import structlog
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headwater_engine.errors import LoadError
from headwater_engine.models.gguf import GGUFFile

log = structlog.get_logger(__name__)

_CONTROL, _USER_DEFINED = 3, 4
"""Token types: special, and ordinary but never cut."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the .gguf file at `path`. Raises LoadError."""
    fields = GGUFFile(path).fields
    kind = fields.get("tokenizer.ggml.model")
    if kind is None:
        raise LoadError(f"{path} contains no tokenizer.")
    if kind != "gpt2":
        from transformers import AutoTokenizer  # imports torch, which is seldom needed

        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    special = {
        f"{role}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
        for role, name in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level_bpe(fields, tokens), **special)
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    return tokenizer


def _byte_level_bpe(fields: dict[str, Any], tokens: list[str]) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    types = fields.get("tokenizer.ggml.token_type", [])
    added = [(token, kind) for token, kind in zip(tokens, types, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in added if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in added if kind == _USER_DEFINED])

    scheme = fields.get("tokenizer.ggml.pre", "default")
    tokenizer.pre_tokenizer = _pre_tokenizer(scheme)
    if scheme == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    bos = fields.get("tokenizer.ggml.bos_token_id")
    if bos is not None and fields.get("tokenizer.ggml.add_bos_token", scheme == "llama-bpe"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A {tokens[bos]} $B", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _pre_tokenizer(scheme: str) -> pre_tokenizers.PreTokenizer:
    """What `tokenizer.ggml.pre` means: the patterns that the models' own tokenizers publish."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    match scheme:
        case "llama-bpe" | "qwen2":
            pattern = _WORDS.format(digits="{1,3}" if scheme == "llama-bpe" else "")
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
            return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        case "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        case "default" | "gpt-2":
            return byte_level
        case _:
            log.warning("unknown pre-tokenizer in the GGUF file; cutting words as GPT-2 does", scheme=scheme)
            return byte_level
