"""A view of a model's folder that Text Generation Inference 3.3.7 reads rightly, and the server started on it.

    python3 tgi.py FOLDER VIEW COMMAND...

It reads folders with transformers 4. What transformers 5 writes otherwise, it passes over in silence: `rope_theta`
stands within `rope_parameters`, and is taken for 10,000; the chat template is a file of its own, and there is none. The
class TokenizersBackend it refuses. What cannot be said in the words of transformers 4 ends this with exit status 1 and
the reason, which Kubernetes keeps.

Only the standard library, and no newer Python than 3.9: it runs in the image of TGI.
"""

import json
import os
import shutil
import sys
from pathlib import Path

THETA = 10000.0
"""What transformers takes where nothing is said."""


class UnreadableError(Exception):
    """TGI would not read this folder, or read it wrongly."""


def write_view(folder: Path, view: Path) -> None:
    """Have `view` be what TGI reads instead of `folder`. Raises UnreadableError, and OSError."""
    written = {}
    config = _read(folder / "config.json")
    if any(_say_as_before(part) for part in _parts(config)):
        written["config.json"] = config
    tokenizer = _read(folder / "tokenizer_config.json")
    if _say_tokenizer_as_before(tokenizer, folder):
        written["tokenizer_config.json"] = tokenizer
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for each in folder.resolve().iterdir():
        if each.name not in written:
            (view / each.name).symlink_to(each)
    for name, content in written.items():
        (view / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _read(file: Path) -> dict:  # type: ignore[type-arg]
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableError(f"{file.name} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise UnreadableError(f"{file.name} is no JSON object")
    return content


def _parts(config: dict) -> list:  # type: ignore[type-arg]
    """The configuration, and those of the models that this one is made of."""
    return [config, *(part for part in config.values() if isinstance(part, dict) and "model_type" in part)]


def _say_as_before(config: dict) -> bool:  # type: ignore[type-arg]
    """Write a configuration in the words of transformers 4. Returns whether that changes it."""
    changed = "dtype" in config
    if changed:
        config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return changed
    if not isinstance(rope, dict):
        raise UnreadableError("config.json: rope_parameters is no JSON object")
    if any(isinstance(each, dict) for each in rope.values()):
        rope = _of_all_layers(config, rope)
    rope = dict(rope)
    config["rope_theta"] = rope.pop("rope_theta", THETA)
    kind = rope.get("rope_type", "default")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if kind == "default" else {**rope, "type": kind}
    return True


def _of_all_layers(config: dict, rope: dict) -> dict:  # type: ignore[type-arg]
    """That of full attention, where layers differ in a way for which Gemma 3 has a word."""
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    known = str(config.get("model_type", "")).startswith("gemma3")
    if not known or not isinstance(full, dict) or not isinstance(sliding, dict) or len(rope) != 2:
        layers = ", ".join(sorted(rope))
        raise UnreadableError(f"config.json: rope_parameters differ by layer ({layers}): TGI 3 knows Gemma 3's alone")
    config["rope_local_base_freq"] = sliding.get("rope_theta", THETA)
    return full


def _say_tokenizer_as_before(tokenizer: dict, folder: Path) -> bool:  # type: ignore[type-arg]
    changed = False
    if tokenizer.get("tokenizer_class") in ("TokenizersBackend", "PythonBackend"):
        if not (folder / "tokenizer.json").exists():
            raise UnreadableError("there is no tokenizer.json, without which TGI 3 does not read this tokenizer")
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        changed = True
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer.setdefault("additional_special_tokens", tokenizer["extra_special_tokens"])
        del tokenizer["extra_special_tokens"]
        changed = True
    template = folder / "chat_template.jinja"
    if template.exists() and "chat_template" not in tokenizer:
        tokenizer["chat_template"] = template.read_text(encoding="utf-8")
        changed = True
    return changed


def main() -> None:
    folder, view, *command = sys.argv[1:]
    try:
        write_view(Path(folder), Path(view))
    except (UnreadableError, OSError, ValueError) as error:  # ValueError: a file that is no text.
        reason = f"TGI cannot be shown {folder}: {error}"
        if os.access("/dev/termination-log", os.W_OK):
            Path("/dev/termination-log").write_text(reason)
        sys.exit(reason)
    if command:
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
