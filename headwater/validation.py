"""What pydantic found wrong, in words that a user can act on."""

import json
from collections.abc import Sequence

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
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= _FOUND_LENGTH else text[: _FOUND_LENGTH - 3] + "..."


def finding(detail: ErrorDetails) -> str:
    """What is allowed and what was found, to follow the path of the field: `must be at most 2, found 3`."""
    match detail["type"]:
        case "missing":
            return "is required"
        case "value_error":
            return str(detail["ctx"]["error"])
        case "rule":
            return detail["msg"]
    allowed = detail["msg"].replace("Input should", "must").partition(", unable to parse")[0]
    return f"{allowed[0].lower()}{allowed[1:]}, found {found(detail['input'])}"
