"""`transformers serve` 5.24, as read in its code.

It answers 422 to fields of other servers, passes over many of OpenAI's with status 200, and keeps to no form.
"""

from typing import ClassVar, Final

from msgspec import Raw

from headwater.backends.dialects.base import Dialect
from headwater.backends.dialects.fields import keep_known, without_tools_not_to_be_called
from headwater.backends.dialects.forms import take_form
from headwater.openai.constraint import Kind

_CHAT: Final = "/v1/chat/completions"
_BOTH: Final = frozenset(
    ("model", "stream", "max_tokens", "temperature", "top_p", "seed", "stop", "logit_bias", "frequency_penalty",
     "generation_config")
)  # fmt: skip
_KNOWN: Final = {
    _CHAT: _BOTH | {"messages", "max_completion_tokens", "tools", "chat_template_kwargs"},
    "/v1/completions": _BOTH | {"prompt", "suffix"},
}
_NONE: Final[frozenset[str]] = frozenset()


class TransformersDialect(Dialect):
    server = "transformers serve"
    paths = frozenset(_KNOWN)
    kinds: ClassVar[frozenset[Kind]] = frozenset()

    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        given = dict(members)
        take_form(given, _NONE, self.kinds)
        without_tools_not_to_be_called(given)
        return keep_known(given, _KNOWN[path])
