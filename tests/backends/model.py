"""A tiny model that all servers take. It says only what can be printed, so that a part of it can be a stop string."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from headwater_engine.models.tokenizer import byte_level_tokenizer
from tests.backends.requests import CONTEXT
from tests.engine.tiny import VOCAB_SIZE, make_tiny


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
    return folder
