"""A tiny model that all servers take. It says only what can be printed, so that a part of it can be a stop string.

Its chat template has it think where it is told to, and writes thoughts and calls of before.
"""

import json
from pathlib import Path
from typing import Final

from safetensors.torch import load_file, save_file

from headwater_engine.models.tokenizer import byte_level_tokenizer
from tests.backends.requests import CONTEXT
from tests.engine.tiny import VOCAB_SIZE, make_tiny

_THINK: Final = ("<think>", "</think>")
_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['reasoning_content'] %}<think>{{ message['reasoning_content'] }}</think>{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    '<tool_call>{"name": {{ call["function"]["name"] | tojson }}, '
    '"arguments": {{ call["function"]["arguments"] | tojson }}}</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if thinking %}<think>{% else %}<think></think>{% endif %}{% endif %}"
)


def make_model(folder: Path) -> Path:
    make_tiny("qwen3", folder, max_position_embeddings=CONTEXT)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tokenizer = byte_level_tokenizer(VOCAB_SIZE)
    for token in range(VOCAB_SIZE):
        text = tokenizer.decode([token])
        if len(text) != 1 or not text.isascii() or not text.isprintable() or text.isspace():
            tensors["lm_head.weight"][token] = 0  # Of the others, one is above 0.
    save_file(tensors, weights, metadata={"format": "pt"})
    _teach_to_think(folder)
    return folder


def _teach_to_think(folder: Path) -> None:
    """Its last two tokens, which are made-up words, begin and end a thought."""
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = {token: text for text, token in told["model"]["vocab"].items()}
    thinks = dict(zip(range(VOCAB_SIZE - len(_THINK), VOCAB_SIZE), _THINK, strict=True))
    told["model"]["vocab"] = {text: token for token, text in (vocabulary | thinks).items()}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    told["added_tokens"] += [{"id": token, "content": text} | plain for token, text in thinks.items()]
    file.write_text(json.dumps(told))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
