"""What of a JSON schema is refused before llguidance sees it: it would read it otherwise, or for too long."""

from collections.abc import Mapping
from typing import Any, Final

from headwater.openai.constraint import MOST_DEEP

_MOST_EXACT: Final = 2**53
_MOST_OPTIONAL: Final = 256
"""Members in a row that may be left out: each of them may come next, which the parser looks at for each token. With
400, some ways through an answer took longer than may be, and others did not."""


def check_schema(schema: Any) -> None:
    """Raises ValueError, which says what of it."""
    within = [(schema, 1)]
    while within:
        each, level = within.pop()
        if isinstance(each, list | dict) and level > MOST_DEEP:
            raise ValueError(f"it has more than {MOST_DEEP} levels")
        match each:
            case list(items):
                within += ((item, level + 1) for item in items)
            case dict(members):
                within += ((member, level + 1) for member in members.values())
                _check(members)


def _check(schema: Mapping[str, Any]) -> None:
    step, values = schema.get("multipleOf"), schema.get("enum")
    if isinstance(step, int | float) and step <= 0:
        raise ValueError(f"`multipleOf` must be greater than 0, found {step}")
    for value in (schema.get("const"), *(values if isinstance(values, list) else ())):
        if isinstance(value, int) and abs(value) > _MOST_EXACT:
            raise ValueError(f"{value} is beyond {_MOST_EXACT}, up to which values are told apart")
    if isinstance(properties := schema.get("properties"), dict):
        _check_optional(properties, schema.get("required"))


def _check_optional(properties: Mapping[str, Any], required: Any) -> None:
    needed = {each for each in required if isinstance(each, str)} if isinstance(required, list) else set()
    run = 0
    for name in properties:
        run = 0 if name in needed else run + 1
        if run > _MOST_OPTIONAL:
            raise ValueError(f"up to `{name}`, more than {_MOST_OPTIONAL} members in a row need not be there")
