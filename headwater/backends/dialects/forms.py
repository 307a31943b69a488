"""The form that an answer is to have, asked for in whatever words, in those of one server."""

import json
import re
from typing import Any, Final

import msgspec
from msgspec import Raw

from headwater.backends.dialects.base import UnsupportedRequestError
from headwater.openai.constraint import FIELDS, MOST_BYTES, Constraint, Kind, form_in

_SPECIAL: Final = re.compile(r"[\\.^$*+?{}\[\]()|]")
"""What stands for more than itself in every kind of regular expression."""
_NAMES: Final = {
    Kind.JSON_SCHEMA: "a JSON schema",
    Kind.REGEX: "a regular expression",
    Kind.CHOICE: "a choice",
    Kind.GRAMMAR: "a grammar",
    Kind.STRUCTURAL_TAG: "structural tags",
}
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


def take_form(members: dict[str, Raw], own: frozenset[str], kinds: frozenset[Kind]) -> tuple[str, Constraint] | None:
    """A form that is asked for in other fields than the server's `own`, which are taken out, and by which of them.

    None: there is nothing to write. How its own fields are to be read is for the server to say.

    Raises UnsupportedRequestError for a form that is none of the server's `kinds`, BadRequestError for none at all.
    """
    foreign = [name for name in FIELDS if name in members and name not in own]
    if not foreign:
        return None
    fields = {name: _value(members, name) for name in FIELDS if name in members}
    for name in foreign:
        del members[name]
    named = form_in(fields)
    if named is None or (named[0] in fields and named[0] not in foreign):
        return None  # These asked for nothing.
    name, form = named
    if form.kind not in kinds:
        raise unsupported(name, form.kind)
    members.pop("response_format", None)  # One that says that any text will do.
    return name, form


def put(members: dict[str, Raw], values: dict[str, Any]) -> None:
    members.update({name: Raw(_encode(value)) for name, value in values.items()})


def unsupported(name: str, kind: Kind) -> UnsupportedRequestError:
    return UnsupportedRequestError(name, f"asks for {_NAMES[kind]}, which the server of this model cannot keep to")


def as_response_format(form: Constraint) -> dict[str, Any]:
    """A schema, as OpenAI has it."""
    named = {"name": "answer", "schema": json.loads(form.text), "strict": not form.lenient}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def as_regex(form: Constraint) -> str:
    """Of a regular expression, or of a choice, which is one, too."""
    if form.kind is Kind.REGEX:
        return form.text
    return "(" + "|".join(_SPECIAL.sub(r"\\\g<0>", each) for each in json.loads(form.text)) + ")"


def as_ebnf(name: str, form: Constraint) -> str:
    """Of a grammar; raises UnsupportedRequestError for one in the way of Lark."""
    if "::=" not in form.text:
        raise UnsupportedRequestError(name, "must be EBNF (`root ::= ...`) for the server of this model, not Lark")
    return form.text


def _value(members: dict[str, Raw], name: str) -> Any:
    if len(members[name]) > MOST_BYTES:
        raise UnsupportedRequestError(name, f"can have {MOST_BYTES} bytes here")
    return _decode(members[name])
