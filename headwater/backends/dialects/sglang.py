"""SGLang 0.5.23, as recorded from it.

Its API is OpenAI's, but for null, which it refuses where a value cannot be missing. A stop string is kept in the text
by a field of its own name. What it does not know it ignores, with status 200, other ways to give a form among it.
"""

from typing import Final

import msgspec
from msgspec import Raw

from headwater.backends.dialects.base import Dialect, Translation, UnsupportedRequestError

_FORMS: Final = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar")
_KEEP_STOP, _OWN_KEEP_STOP = "include_stop_str_in_output", "no_stop_trim"
_decode: Final = msgspec.json.Decoder().decode


class SGLangDialect(Dialect):
    paths = frozenset(("/v1/chat/completions", "/v1/completions"))

    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        given = {name: raw for name, raw in members.items() if bytes(raw).strip() != b"null"}
        for name in _FORMS:
            if name in given:
                hint = "is not known to the server of this model; use `response_format`, or its `regex` and `ebnf`"
                raise UnsupportedRequestError(name, hint)
        if _KEEP_STOP in given and _decode(keep := given.pop(_KEEP_STOP)) is True:
            given.setdefault(_OWN_KEEP_STOP, keep)
        return given

    def translation(self, path: str, members: dict[str, Raw], model: str, request_id: str) -> Translation | None:
        return None
