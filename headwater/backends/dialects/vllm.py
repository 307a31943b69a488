"""vLLM 0.32, as read in its code: `guided_*` of before 0.12, and other servers' ways to ask for a form, it passes over
with status 200."""

import json
from typing import Any, Final

from msgspec import Raw

from headwater.backends.dialects.base import Dialect
from headwater.backends.dialects.forms import put, take_form
from headwater.openai.constraint import Constraint, Kind

_OWN: Final = frozenset(("response_format", "structured_outputs"))
_KEYS: Final = {Kind.JSON_SCHEMA: "json", Kind.CHOICE: "choice", Kind.REGEX: "regex", Kind.GRAMMAR: "grammar"}


class VLLMDialect(Dialect):
    server = "vLLM"
    paths = frozenset(("/v1/chat/completions", "/v1/completions"))
    kinds = frozenset(Kind)
    forms_alone = True

    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        given = dict(members)
        if (asked := take_form(given, _OWN, self.kinds)) is not None:
            put(given, _written(asked[1]))
        return given


def _written(form: Constraint) -> dict[str, Any]:
    value = json.loads(form.text) if form.kind in (Kind.JSON_SCHEMA, Kind.CHOICE) else form.text
    return {"structured_outputs": {_KEYS[form.kind]: value}}
