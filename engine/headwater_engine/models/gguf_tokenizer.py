"""The tokenizer inside a GGUF file.

Byte-level BPE (Llama 3, Qwen, SmolLM2) is built from the file's vocabulary and merges, and from what `gguf_schemes.py`
knows of how text is cut before. SentencePiece vocabularies (Llama 2, Mistral) go through transformers' converter.
"""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headwater_engine.errors import LoadError
from headwater_engine.models.gguf import CONTROL, USER_DEFINED, GGUFFile
from headwater_engine.models.gguf_schemes import scheme_of


def load_gguf_tokenizer(file: GGUFFile) -> PreTrainedTokenizerBase:
    """The tokenizer in `file`. Raises LoadError."""
    fields = file.fields
    kind = fields.get("tokenizer.ggml.model")
    if kind is None:
        raise LoadError(f"{file.path} contains no tokenizer.")
    if kind != "gpt2":
        return _sentencepiece(file)
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
    scheme = scheme_of(fields.get("tokenizer.ggml.pre", "default"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=scheme.ignore_merges))
    types = fields.get("tokenizer.ggml.token_type", [])
    added = [(token, kind) for token, kind in zip(tokens, types, strict=False) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in added if kind == CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in added if kind == USER_DEFINED])

    tokenizer.pre_tokenizer = scheme.pre_tokenizer()
    if (normalizer := scheme.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    bos = fields.get("tokenizer.ggml.bos_token_id")
    if bos is not None and fields.get("tokenizer.ggml.add_bos_token", scheme.adds_bos):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A {tokens[bos]} $B", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _sentencepiece(file: GGUFFile) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # imports torch, which is seldom needed

    tokenizer = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    if not file.fields.get("tokenizer.ggml.add_space_prefix", True):
        # The converter does not look at this: a space before the text, and its end when tokens become text again.
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer
