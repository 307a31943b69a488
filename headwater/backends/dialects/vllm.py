"""vLLM 0.32, as read in its code.

`guided_*` of before 0.12, and the words of other servers, it passes over with status 200.
"""

import json
from typing import Any, Final

from msgspec import Raw

from headwater.backends.dialects.base import Dialect
from headwater.backends.dialects.fields import put_thinking, refuse_ignored
from headwater.backends.dialects.forms import put, take_form
from headwater.openai.constraint import Constraint, Kind

CHAT: Final = "/v1/chat/completions"
OTHERS_WORDS: Final = ("enable_thinking", "no_stop_trim", "stop_regex")
"""Of our engine and of SGLang."""
_OWN: Final = frozenset(("response_format", "structured_outputs"))
_IGNORED: Final = frozenset(("stop_regex",))
_KEYS: Final = {Kind.JSON_SCHEMA: "json", Kind.CHOICE: "choice", Kind.REGEX: "regex", Kind.GRAMMAR: "grammar"}


class VLLMDialect(Dialect):
    server = "vLLM"
    paths = frozenset((CHAT, "/v1/completions"))
    kinds = frozenset(Kind)
    reasoning = "reasoning"
    in_vllms_words = True

    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        given = dict(members)
        if (asked := take_form(given, _OWN, self.kinds)) is not None:
            put(given, _written(asked[1]))
        if path == CHAT:
            put_thinking(given)
        if (keep := given.pop("no_stop_trim", None)) is not None:
            given.setdefault("include_stop_str_in_output", keep)
        refuse_ignored(given, _IGNORED)
        return given


def _written(form: Constraint) -> dict[str, Any]:
    value = json.loads(form.text) if form.kind in (Kind.JSON_SCHEMA, Kind.CHOICE) else form.text
    return {"structured_outputs": {_KEYS[form.kind]: value}}
