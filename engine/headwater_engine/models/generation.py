"""What a model's makers recommend for sampling, and which tokens end its answers."""

import json
from typing import Any

from headwater_engine.errors import LoadError
from headwater_engine.models.source import ModelFolder, WeightsKind, read_config
from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS


def load_generation_config(folder: ModelFolder) -> dict[str, Any]:
    """The fields of generation_config.json, with `eos_token_id` always a list (empty where the model has none).

    Without such a file, the ends of an answer come from config.json. Raises LoadError.
    """
    values: dict[str, Any] = {}
    if folder.path is None:
        values["eos_token_id"] = BYTE_LEVEL_EOS
    elif folder.kind is not WeightsKind.GGUF and (file := folder.path / "generation_config.json").exists():
        try:
            values = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise LoadError(f"{file} is not JSON: {error}") from error
    eos = values.get("eos_token_id")
    if eos is None:
        eos = read_config(folder).get("eos_token_id")
    values["eos_token_id"] = [] if eos is None else eos if isinstance(eos, list) else [eos]
    return values
