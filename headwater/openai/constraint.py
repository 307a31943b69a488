"""The form that an answer is to have: one constraint, however a client asks for it.

OpenAI has `response_format`, vLLM `structured_outputs` (and `guided_*` before it), SGLang `json_schema`, `regex` and
`ebnf`, llama.cpp `json_schema` and `grammar`. Each of them becomes one `Constraint`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct

from headwater.openai.errors import BadRequestError
from headwater.openai.request import SamplingRequest
from headwater.validation import found

MOST_BYTES: Final = 64 * 1024
"""Of a constraint's text. What it costs to make a grammar of it goes by them, and no better than as their square."""
MOST_DEEP: Final = 100
"""Levels of a schema: what writes and reads it counts them on the stack, where some come to an end at 180."""


class Kind(StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    STRUCTURAL_TAG = "structural_tag"


class Constraint(Struct, frozen=True):
    """The answer's whole text is of this form."""

    kind: Kind
    text: str
    """A schema, a list of strings, or structures and triggers, as JSON; a regular expression; a grammar in the way of
    Lark, GBNF or EBNF."""
    lenient: bool = False
    """Whether parts of a schema that cannot be enforced are passed over, instead of refused."""
    lead: str = ""
    """Where the form is not all of the answer: an engine's own rules in Lark, in which `@form` is the form."""
    spare: "Constraint | None" = None
    """What holds instead, where this cannot be enforced."""


_ANY_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_DRAFTS: Final = (
    *(f"http://json-schema.org/draft-0{number}/schema{end}" for number in (4, 6, 7) for end in ("", "#")),
    "https://json-schema.org/draft/2019-09/schema",
    _ANY_DRAFT,
)
"""What `$schema` may be that says how to read the rest. Any other name means nothing here: none is fetched."""
_ANY_OBJECT: Final = '{"type":"object"}'
_SHORT: Final[Mapping[str, str]] = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
}
"""Fields of the body that mean one of `structured_outputs`."""
FIELDS: Final = ("response_format", "structured_outputs", *_SHORT)
"""All that can ask for a form."""


def form_of(request: SamplingRequest) -> Constraint | None:
    """What the request asks for; None where any text will do. Raises BadRequestError, which names the field."""
    named = form_in(_fields(request))
    if named is None:
        return None
    name, constraint = named
    size = len(constraint.text.encode(errors="surrogatepass"))
    if size > MOST_BYTES:
        raise BadRequestError(f"`{name}` has {size} bytes; allowed are {MOST_BYTES}.", param=name)
    for other in ("min_tokens", "allowed_token_ids"):
        if getattr(request, other):
            raise BadRequestError(f"`{other}` cannot be kept where `{name}` says what the answer is.", param=other)
    return constraint


def form_field(request: SamplingRequest) -> str | None:
    """The field that asks for a form. Raises BadRequestError, as `form_of`."""
    named = form_in(_fields(request))
    return named[0] if named is not None else None


def _fields(request: SamplingRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in FIELDS}


def form_in(fields: Mapping[str, Any]) -> tuple[str, Constraint] | None:
    """What these fields of a body ask for, and which of them does; others are not looked at. Raises BadRequestError."""
    asked = list(_asked(fields))
    if len(asked) > 1:
        names = " and ".join(f"`{name}`" for name, _ in asked)
        raise BadRequestError(f"{names} ask for a form of the answer; only one of them can.", param=asked[1][0])
    return asked[0] if asked else None


def _asked(fields: Mapping[str, Any]) -> Iterator[tuple[str, Constraint]]:
    if (value := _object(fields, "response_format")) is not None and (form := _response_format(value)) is not None:
        yield "response_format", form
    if (value := _object(fields, "structured_outputs")) is not None:
        yield from _structured_outputs(value)
    for name, way in _SHORT.items():
        if (value := fields.get(name)) is not None:
            yield name, _WAYS[way](name, value)


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise _wrong(name, "must be an object", value)
    return value


def _response_format(value: Mapping[str, Any]) -> Constraint | None:
    """OpenAI's; `structural_tag` is SGLang's and vLLM's."""
    name = "response_format"
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return Constraint(Kind.JSON_SCHEMA, _ANY_OBJECT)
        case "json_schema":
            form = value.get("json_schema")
            if not isinstance(form, dict) or "schema" not in form:
                raise _wrong(f"{name}.json_schema", "must be an object with a `schema`", form)
            for member, kind, rule in (("name", str, "text"), ("strict", bool, "true or false")):
                if not isinstance(given := form.get(member), kind | None):
                    raise _wrong(f"{name}.json_schema.{member}", f"must be {rule}", given)
            return _schema(f"{name}.json_schema.schema", form["schema"], lenient=form.get("strict") is False)
        case "structural_tag":
            return _structural_tag(name, dict(value))
        case other:
            raise _wrong(f"{name}.type", "must be text, json_object, json_schema or structural_tag", other)


def _structured_outputs(value: Mapping[str, Any]) -> Iterator[tuple[str, Constraint]]:
    """vLLM's."""
    for key, each in value.items():
        name = f"structured_outputs.{key}"
        if each is None or each is False:
            continue
        if key == "json_object" and each is True:
            yield name, Constraint(Kind.JSON_SCHEMA, _ANY_OBJECT)
        elif (way := _WAYS.get(key)) is not None:
            yield name, way(name, each)
        else:
            known = ", ".join([*_WAYS, "json_object"])
            raise BadRequestError(f"`{name}` is not supported; allowed are {known}.", param=name)


def _schema(name: str, value: Any, *, lenient: bool = False) -> Constraint:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _wrong(name, "must be a JSON schema", value) from None
    if value is True:
        value = {}
    if not isinstance(value, dict):
        raise _wrong(name, "must be a JSON schema, of which some text is", value)
    if value.get("$schema", _ANY_DRAFT) not in _DRAFTS:
        value = {key: each for key, each in value.items() if key != "$schema"}
    return Constraint(Kind.JSON_SCHEMA, _written(name, value), lenient)


def _text(kind: Kind) -> Callable[[str, Any], Constraint]:
    def read(name: str, value: Any) -> Constraint:
        if not isinstance(value, str) or not value:
            raise _wrong(name, "must be a text that is not empty", value)
        return Constraint(kind, value)

    return read


def _choice(name: str, value: Any) -> Constraint:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise _wrong(name, "must be a list of texts, none of them empty", value)
    return Constraint(Kind.CHOICE, _written(name, value))


def _structural_tag(name: str, value: Any) -> Constraint:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _wrong(name, "must be a JSON object", value) from None
    if isinstance(value, dict) and "format" in value:
        hint = "has `format`, xgrammar's newer way, which is not known here; give `structures` and `triggers`"
        raise BadRequestError(f"`{name}` {hint}.", param=name)
    if not isinstance(value, dict) or not {"structures", "triggers"} <= value.keys():
        raise _wrong(name, "must have `structures` and `triggers`", value)
    return Constraint(Kind.STRUCTURAL_TAG, _written(name, {key: value[key] for key in ("structures", "triggers")}))


_WAYS: Final[Mapping[str, Callable[[str, Any], Constraint]]] = {
    "json": _schema,
    "regex": _text(Kind.REGEX),
    "choice": _choice,
    "grammar": _text(Kind.GRAMMAR),
    "structural_tag": _structural_tag,
}
"""Of `structured_outputs`."""


def _written(name: str, value: Any) -> str:
    if _depth(value) > MOST_DEEP:
        raise BadRequestError(f"`{name}` has more than {MOST_DEEP} levels.", param=name)
    # Not in ASCII: a letter of the schema is one of the answer's.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted without a call for each."""
    level, depth = [value], 0
    while level and depth <= MOST_DEEP:
        within = [each for each in level if isinstance(each, dict | list)]
        level = [child for each in within for child in (each.values() if isinstance(each, dict) else each)]
        depth += bool(within)
    return depth


def _wrong(name: str, rule: str, value: Any) -> BadRequestError:
    return BadRequestError(f"`{name}` {rule}, found {found(value)}.", param=name)
