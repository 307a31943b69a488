"""How text is cut into words before bytes are merged, by the names that GGUF files have for it.

A GGUF file does not say how to cut, it names a scheme (`tokenizer.ggml.pre`). The patterns are those of the models' own
tokenizer.json; which name means which, llama.cpp knows (`src/llama-vocab.cpp`). A wrong guess is no failure that one
sees: some 15 % of the words become other tokens than the model learned, and its answers get worse.
"""

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from headwater_engine.errors import LoadError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_UNNAMED = (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class Scheme:
    patterns: tuple[str, ...]
    """Each cuts what those before it have left in pieces."""
    ignore_merges: bool = False
    """A word that is a token is one, whatever the merges would make of it."""
    adds_bos: bool = False
    """Where the file does not say."""
    composes: bool = False
    """Characters are composed (NFC) before."""

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.composes else None


_NAMES: dict[Scheme, tuple[str, ...]] = {
    Scheme((_LLAMA3,), ignore_merges=True, adds_bos=True): (
        "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    ),
    Scheme((_LLAMA3,)): ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    Scheme((_QWEN2,), composes=True): ("qwen2", "deepseek-r1-qwen", "kormo", "megrez"),
    Scheme((_QWEN2,)): ("stablelm2", "hunyuan", "solar-open", "grok-2"),
    Scheme((_TEKKEN,), ignore_merges=True, adds_bos=True): ("tekken",),
    Scheme((_GPT4O,)): ("gpt-4o", "llama4", "kanana2", "minimax-m2"),
    Scheme(_DEEPSEEK3): ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
    Scheme(_DEEPSEEK_CODER): ("deepseek-coder",),
    Scheme((r"\p{N}", _GPT2)): (
        "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2",
    ),
    Scheme((_GPT2,)): (
        "gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum",
        "exaone4",
    ),
    Scheme(_UNNAMED): ("default",),
}  # fmt: skip
_SCHEMES = {name: scheme for scheme, names in _NAMES.items() for name in names}


def scheme_of(name: str) -> Scheme:
    """Raises LoadError where we do not know how such text is cut."""
    if name not in _SCHEMES:
        raise LoadError(
            f"The GGUF file's pre-tokenizer is {name[:40]!r}, and how it cuts text is not known here; known are "
            f"{', '.join(sorted(_SCHEMES))}. The Hugging Face folder of the model says it itself."
        )
    return _SCHEMES[name]
