"""A model's tokenizer and chat template, so that the router knows a prompt's token ids as the engine will.

Only for models for which it is switched on: it costs more than all the rest of a decision, and is worth it where
prompts are to be matched exactly against KV events. It reads the folder that the engine reads: `tokenizer.json`, and
the template from `chat_template.jinja` or `tokenizer_config.json`. What cannot be rendered here as the engine would
(images, tools that the template refuses) has no token ids, and is matched by its text.

A template is a program (`index.template`). So it is always the model's own: a request that brings one, or that gives
the model's arguments of the router's, has no token ids. And it loops over what a client sent, so that is no more than
`_MAX_VALUES` JSON values, in no more text than `index.prompt.MAX_EXACT_BYTES`.
"""

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from headwater_router.index.segments import SegmentedTokenizer
from headwater_router.index.template import ChatTemplate

_SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "pad_token", "unk_token")
_RESERVED: Final = frozenset(
    (
        *_SPECIAL_TOKENS,
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "documents",
        "messages",
        "raise_exception",
        "strftime_now",
        "tools",
    )
)
"""No names for a template's further arguments."""
_MAX_VALUES: Final = 8192


class ModelTokenizer:
    """Prompts to token ids. For several threads."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None, special_tokens: Mapping[str, str]) -> None:
        """Raises ValueError for a template that is not valid."""
        self._tokenizer = SegmentedTokenizer(tokenizer)
        self._template = ChatTemplate(chat_template) if chat_template else None
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelTokenizer":
        """Raises FileNotFoundError if there is no tokenizer.json, ValueError if a file makes no sense."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: a tokenizer for the router needs this file")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises no class of its own.
            raise ValueError(f"{path}: {error}") from None
        config = _config(folder / "tokenizer_config.json")
        special = {name: text for name in _SPECIAL_TOKENS if (text := _token_text(config.get(name))) is not None}
        template_path = folder / "chat_template.jinja"
        try:
            template = template_path.read_text() if template_path.is_file() else _default_template(config)
            return cls(tokenizer, template, special)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def chat(self, body: Mapping[str, Any]) -> "array[int] | None":
        """The ids of a /v1/chat/completions body, None if they cannot be told."""
        if self._template is None or body.get("chat_template") is not None or not _few_values(body):
            return None
        messages = _text_messages(body.get("messages"))
        arguments = body.get("chat_template_kwargs") or {}
        if messages is None or not isinstance(arguments, dict) or not _RESERVED.isdisjoint(arguments):
            return None
        text = self._template.render(
            {
                "messages": messages,
                "tools": body.get("tools"),
                "documents": body.get("documents"),
                "add_generation_prompt": body.get("add_generation_prompt", True),
                "continue_final_message": body.get("continue_final_message", False),
                **self._special_tokens,
                **arguments,
            }
        )
        return None if text is None else self._ids(text, add_special_tokens=body.get("add_special_tokens") is True)

    def completion(self, body: Mapping[str, Any]) -> "array[int] | None":
        """The ids of a /v1/completions body with one prompt of text."""
        match body.get("prompt"):
            case (str() as text) | [str() as text]:
                return self._ids(text, add_special_tokens=body.get("add_special_tokens") is not False)
            case _:
                return None

    def _ids(self, text: str, *, add_special_tokens: bool) -> "array[int] | None":
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except Exception:  # The library raises no class of its own, as for words that its file has no token for.
            return None


def named_tokenizer(setting: str) -> tuple[str, ModelTokenizer]:
    """What `MODEL=FOLDER` stands for. Raises ValueError or OSError."""
    model, separator, folder = setting.partition("=")
    if not separator:
        raise ValueError(f"must be MODEL=FOLDER, found {setting!r}")
    return model, ModelTokenizer.from_folder(Path(folder))


def _config(path: Path) -> dict[str, Any]:
    """Empty where there is none. Raises ValueError or OSError."""
    try:
        config = json.loads(path.read_text()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: it must be an object, found {type(config).__name__}")
    return config


def _token_text(token: Any) -> str | None:
    match token:
        case (str() as text) | {"content": str() as text}:
            return text
        case _:
            return None


def _default_template(config: Mapping[str, Any]) -> str | None:
    match config.get("chat_template"):
        case str() as template:
            return template
        case list() as named:
            return next(filter(None, map(_named_default, named)), None)
        case _:
            return None


def _named_default(named: Any) -> str | None:
    match named:
        case {"name": "default", "template": str() as template}:
            return template
        case _:
            return None


def _few_values(body: Mapping[str, Any]) -> bool:
    """Whether they are few enough to loop over; counts no further than that."""
    open_values: list[Any] = [body]
    for value in open_values:  # It grows on the way.
        if isinstance(value, dict):
            open_values += value.values()
        elif isinstance(value, list):
            open_values += value
        if len(open_values) > _MAX_VALUES:
            return False
    return True


def _text_messages(messages: Any) -> list[dict[str, Any]] | None:
    """Messages whose content is text, parts joined as engines do. None if there is anything else in them."""
    if not isinstance(messages, list):
        return None
    texts = []
    for message in messages:
        match message:
            case {"content": list() as parts}:
                if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
                    return None
                texts.append({**message, "content": "\n".join(part["text"] for part in parts)})
            case dict():
                texts.append(message)
            case _:
                return None
    return texts
