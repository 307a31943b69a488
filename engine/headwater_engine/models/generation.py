"""What a model's makers recommend for sampling, and which tokens end its answers."""

from typing import Any

from headwater_engine.errors import LoadError
from headwater_engine.models.source import ModelFolder, WeightsKind, read_config, read_object
from headwater_engine.models.tokenizer import BYTE_LEVEL_EOS


def load_generation_config(folder: ModelFolder) -> dict[str, Any]:
    """The fields of generation_config.json, with `eos_token_id` always a list (empty where the model has none).

    Without such a file, the ends of an answer come from config.json. Raises LoadError.
    """
    values: dict[str, Any] = {}
    if folder.path is None:
        values["eos_token_id"] = BYTE_LEVEL_EOS
    elif folder.kind is not WeightsKind.GGUF and (file := folder.path / "generation_config.json").exists():
        values = read_object(file)
    where, eos = "generation_config.json", values.get("eos_token_id")
    if eos is None:
        where, eos = "config.json", read_config(folder).get("eos_token_id")
    ends = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(end, int) and not isinstance(end, bool) and 0 <= end < 2**31 for end in ends):
        raise LoadError(f"{where}: eos_token_id is {eos!r}, must be a token id or a list of them.")
    return values | {"eos_token_id": ends}
