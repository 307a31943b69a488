"""What another API calls the fields of a chat: errors name those that the client has written."""

import re
from collections.abc import Sequence
from typing import Any, Final

Names = Sequence[tuple[re.Pattern[str], str]]
"""The beginning of a chat's field, and what stands for it; the first that fits does."""


def names(*each: tuple[str, str]) -> Names:
    return [(re.compile(theirs), ours) for theirs, ours in each]


RESPONSES: Final = names(
    (r"max_(completion_)?tokens\b", "max_output_tokens"),
    (r"messages\b.*", "input"),  # items and messages are not counted alike
    (r"response_format(\.json_schema)?\b", "text.format"),
    (r"reasoning_effort\b", "reasoning.effort"),
    (r"verbosity\b", "text.verbosity"),
    (r"(tools\[\d+\])\.function", r"\1"),
)
MESSAGES: Final = names(
    (r"max_completion_tokens\b", "max_tokens"),
    (r"messages\b.*", "messages"),
    (r"stop(?=$|\[)", "stop_sequences"),
    (r"response_format(\.json_schema)?\b", "output_config.format"),
    (r"reasoning_effort\b", "output_config.effort"),
    (r"thinking_token_budget\b", "thinking.budget_tokens"),
    (r"user\b", "metadata.user_id"),
    (r"(tools\[\d+\])\.function\.parameters", r"\1.input_schema"),
    (r"(tools\[\d+\])\.function", r"\1"),
)
_QUOTED: Final = re.compile("`([^`]+)`")


def renamed(error: dict[str, Any], names: Names) -> dict[str, Any]:
    """An error of a chat, as within OpenAI's {"error": ...}, with the names of another API."""
    told = dict(error)
    if isinstance(param := error.get("param"), str):
        told["param"] = _name(param, names)
    if isinstance(message := error.get("message"), str):
        told["message"] = _QUOTED.sub(lambda found: f"`{_name(found[1], names)}`", message)
    return told


def _name(field: str, names: Names) -> str:
    for theirs, ours in names:
        if theirs.match(field):
            return theirs.sub(ours, field, count=1)
    return field
