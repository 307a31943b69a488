"""What pydantic found wrong, in words that a user can act on."""

import json
from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel
from pydantic_core import ErrorDetails

_FOUND_LENGTH = 80
"""Characters of a wrong value that a message repeats."""


def field_path(location: Sequence[int | str]) -> str:
    """`("messages", 0, "role")` as `messages[0].role`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def found(value: object) -> str:
    """A wrong value as JSON, cut to a length that fits a message."""
    text = json.dumps(value, default=_plain, ensure_ascii=False)
    return text if len(text) <= _FOUND_LENGTH else text[: _FOUND_LENGTH - 3] + "..."


def _plain(value: object) -> object:
    """A part of a resource as its user wrote it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return repr(value)


_KINDS: Final = {
    "string_type": "text",
    "string_unicode": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number that is finite",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""By pydantic's type of an error: what a value must be."""
_LENGTHS: Final = {
    "too_short": ("at least", "min_length", "element"),
    "too_long": ("at most", "max_length", "element"),
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
}


_SAID: Final = ("missing", "value_error", "rule")
"""Types whose text says what was found, where that helps."""


def finding(detail: ErrorDetails) -> str:
    """What is allowed and what was found, to follow the path of the field: `must be at most 2, found 3`."""
    said = allowed(detail)
    return said if detail["type"] in _SAID else f"{said}, found {found(detail['input'])}"


def allowed(detail: ErrorDetails) -> str:
    """As `finding`, without what was found: it may be a secret."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(context["error"])
    if kind in _LENGTHS:
        bound, name, what = _LENGTHS[kind]
        return f"must have {bound} {context[name]} {what}{'' if context[name] == 1 else 's'}"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    # A rule has its own words, and of limits pydantic speaks as we do.
    return detail["msg"] if kind == "rule" else detail["msg"].replace("Input should", "must")
