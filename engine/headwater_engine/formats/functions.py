"""The functions that a request offers, and what formats need of them: their names, and of what types arguments are."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SPACE: Final = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between the parts of a JSON text. A small model that may write spaces without end does."""


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """A JSON schema of an object."""
    strict: bool = False
    """Whether a schema that cannot be enforced is refused; else as much of it as can be is enforced."""

    @property
    def properties(self) -> Mapping[str, Any]:
        properties = self.parameters.get("properties")
        return properties if isinstance(properties, dict) else {}

    @property
    def required(self) -> list[str]:
        required = self.parameters.get("required")
        return [each for each in required if isinstance(each, str)] if isinstance(required, list) else []

    def loosened(self, *, needed: bool = False) -> "Function":
        """With arguments of the same names, held to what cannot be wrong of their schema; one that is strict as it is.

        `needed`: only those that must be there have their names; there may be others.
        """
        if self.strict:
            return self
        named = self.required if needed else self.properties
        members = {name: _kind(self.properties[name]) for name in named if name in self.properties}
        is_open = needed or not self.parameters.keys().isdisjoint(_OPEN)
        return Function(
            self.name,
            {"type": "object", "properties": members}
            | {"required": [each for each in self.required if each in members]}
            | ({"additionalProperties": True} if is_open else {}),
        )


def _kind(schema: Any) -> dict[str, Any]:
    """Text stays text: formats write it without quotes."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    return {"type": "string"} if kind in ("string", ["string"]) else {}


Functions = Mapping[str, Function]


def takes_text(function: Function | None, name: str) -> bool | None:
    """Whether an argument is a string and nothing else; None where the schema does not say what it is."""
    schema = function.properties.get(name) if function is not None else None
    if not isinstance(schema, dict):
        return None
    kinds = schema.get("type")
    if kinds is None:
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        return all(isinstance(each, str) for each in values) if isinstance(values, list) and values else None
    return kinds in ("string", ["string"])


def as_json(function: Function | None, name: str, text: str) -> str:
    """An argument that a format writes without quotes, as JSON: text, if it is to be text or nothing else."""
    if takes_text(function, name):
        return written(text)
    try:
        return written(json.loads(text))
    except (ValueError, RecursionError):
        words = {"True": "true", "False": "false", "None": "null"}
        return words.get(text.strip(), written(text))


class Members:
    """A JSON object that is written member by member."""

    def __init__(self) -> None:
        self._before = "{"

    def member(self, name: str, value: str) -> str:
        """`value`: as JSON."""
        text = f"{self._before}{written(name)}: {value}"
        self._before = ", "
        return text

    def end(self) -> str:
        return "{}" if self._before == "{" else "}"


def written(value: Any) -> str:
    """As JSON, in the way that models write it."""
    return json.dumps(value, ensure_ascii=False)


# As grammars, in llguidance's dialect of Lark

MORE: Final = "{0,31}"
"""How many calls may come behind the first: a small model that must call goes on to the end of its tokens."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """How texts stand in a grammar for one tokenizer: what is one token of its own there is no letters."""

    token_of: Callable[[str], int | None]
    markers: tuple[str, ...] = ()
    """Texts that may be tokens."""

    def __call__(self, text: str) -> str:
        """An expression that matches `text`."""
        for marker in self.markers:
            if marker in text and (token := self.token_of(marker)) is not None:
                before, _, behind = text.partition(marker)
                return " ".join(filter(None, (self(before), f"<[{token}]>", self(behind))))
        return json.dumps(text, ensure_ascii=False) if text else ""


def schema(value: Mapping[str, Any], *, strict: bool) -> str:
    """An expression that matches a JSON text of the schema."""
    return f"%json {written({**value, 'x-guidance': {'whitespace_pattern': SPACE, 'lenient': not strict}})}"


_OPEN: Final = frozenset(
    ("additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", "allOf", "anyOf", "oneOf")
)
"""What says of members that are not named."""


def arguments_of(function: Function) -> dict[str, Any]:
    """The schema of the arguments: an object, with no members but those that are named, unless it says of others."""
    parameters = {"type": "object", **function.parameters}
    if parameters.keys().isdisjoint(_OPEN) and function.properties.keys() >= set(function.required):
        parameters = {"properties": {}, **parameters, "additionalProperties": False}
    return parameters


_DATA: Final = frozenset(("const", "default", "enum", "examples"))
"""Keywords whose values are no schemas."""
_NAMES: Final = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
"""Keywords whose values have names of their own for keys."""
ROOT: Final = "#/$defs/arguments"
"""Where the schema of the arguments is, if it refers to itself, in one that is made of it."""


def definitions_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What is to stand at the root of a schema in which `parameters` are, or a part of them: nothing, where they refer
    to no place in themselves."""
    moved = _moved(parameters)
    return {} if moved == parameters else {"$defs": {"arguments": moved}}


def part_of(parameters: Mapping[str, Any], part: Any) -> dict[str, Any]:
    """A part of a schema as one by itself; all that is no object says nothing."""
    part = part if isinstance(part, dict) else {}
    moved = _moved(part)
    return part if moved == part else {**moved, **definitions_of(parameters)}


def _moved(schema: Any, *, named: bool = False) -> Any:
    """With all that it refers to in `ROOT`. `named`: its keys are names, not keywords."""
    if isinstance(schema, list):
        return [_moved(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {}
    for key, value in schema.items():
        if named:
            moved[key] = _moved(value)
        elif key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            moved[key] = ROOT + value[1:]
        else:
            moved[key] = value if key in _DATA else _moved(value, named=key in _NAMES)
    return moved


def either(expressions: Iterable[str]) -> str:
    return "(" + " | ".join(f"({each})" for each in expressions) + ")"
