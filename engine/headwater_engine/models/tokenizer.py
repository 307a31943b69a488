"""The tokenizer of a model. Without torch: the HTTP process uses it, and imports none."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headwater_engine.errors import LoadError
from headwater_engine.models.gguf_tokenizer import load_gguf_tokenizer
from headwater_engine.models.source import ModelFolder, WeightsKind, read_config, read_object

_BYTE_LEVEL_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTE_LEVEL_EOS = 256 + _BYTE_LEVEL_SPECIALS.index("<|im_end|>")
"""Token that ends an answer where the tokenizer is the one for bare random weights."""
_MOST_MADE_UP = 10_000_000
_BYTE_LEVEL_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model in `folder`. Raises LoadError.

    Random weights of a bare shape get one token for each byte, and for the rest of their vocabulary made-up words, so
    that whatever such a model generates decodes to some text.
    """
    if folder.path is None or (folder.kind is WeightsKind.RANDOM and not (folder.path / "tokenizer.json").exists()):
        rows = read_config(folder).get("vocab_size")
        if not isinstance(rows, int) or rows > _MOST_MADE_UP:
            raise LoadError(f"config.json: vocab_size is {rows!r}, must be an integer of at most {_MOST_MADE_UP}.")
        return byte_level_tokenizer(rows)
    try:
        if folder.kind is WeightsKind.GGUF:
            tokenizer = load_gguf_tokenizer(folder.gguf)
        else:
            tokenizer = _from_files(folder.path)
            if tokenizer.chat_template is None and (file := folder.path / "chat_template.json").exists():
                tokenizer.chat_template = read_object(file).get("chat_template")
        _check(tokenizer, folder.path)
        return tokenizer
    except LoadError:
        raise
    except Exception as error:  # tokenizers' own has no narrower class
        raise LoadError(f"The tokenizer of {folder.path} cannot be loaded: {str(error)[:400]}") from error


def _check(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises LoadError for what transformers takes as it is, and stumbles over in a request."""
    template, length = tokenizer.chat_template, tokenizer.model_max_length
    each = list(template.values()) if isinstance(template, dict) else [template]
    if not all(isinstance(text, str | None) for text in each):
        raise LoadError(f"{folder}: chat_template is {str(template)[:80]!r}, must be text.")
    if not isinstance(length, int | float | None):
        raise LoadError(f"{folder}: model_max_length is {str(length)[:80]!r}, must be a number.")


def _from_files(folder: Path) -> PreTrainedTokenizerBase:
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer  # imports torch, which is seldom needed

    return AutoTokenizer.from_pretrained(folder)


def byte_level_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """A token for each byte; three special tokens and made-up words follow. Raises LoadError below 259 tokens."""
    specials = _BYTE_LEVEL_SPECIALS
    if vocab_size < 256 + len(specials):
        raise LoadError(f"Random weights need a vocab_size of {256 + len(specials)} or more; found {vocab_size}.")
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {special: 256 + index for index, special in enumerate(specials)}
    vocabulary |= {f"Ġw{index}": index for index in range(len(vocabulary), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, normalized=False) for special in specials])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = _BYTE_LEVEL_CHAT
    return wrapped
