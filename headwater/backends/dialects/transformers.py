"""`transformers serve` 5.24, as read in its code.

It answers 422 to fields of other servers, passes over many of OpenAI's with status 200, and keeps to no form. A stop
string stays in its text, behind which it goes on with --continuous-batching; an empty list of them it answers with 500,
and so it does a bias that is a whole number.
"""

from typing import Any, ClassVar, Final

import msgspec
from msgspec import Raw

from headwater.backends.dialects.base import Dialect, Translation
from headwater.backends.dialects.fields import (
    keep_known,
    put_thinking,
    take_special_tokens,
    without_tools_not_to_be_called,
)
from headwater.backends.dialects.forms import put, take_form
from headwater.backends.dialects.stops import StopStrings, stops_in
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
_decode: Final = msgspec.json.Decoder().decode


class TransformersDialect(Dialect):
    server = "transformers serve"
    paths = frozenset(_KNOWN)
    kinds: ClassVar[frozenset[Kind]] = frozenset()

    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        given = dict(members)
        take_form(given, _NONE, self.kinds)
        if path == _CHAT:
            put_thinking(given)
        without_tools_not_to_be_called(given)
        take_special_tokens(path, given)
        if "stop" in given and not stops_in(given):
            del given["stop"]
        _write_bias(given)
        return keep_known(given, _KNOWN[path])

    def translation(self, path: str, members: dict[str, Raw], model: str, request_id: str) -> Translation | None:
        stops = StopStrings(stops_in(members))
        return _BeforeStops(stops) if stops else None


def _write_bias(members: dict[str, Raw]) -> None:
    """Others than OpenAI's are for the server to judge."""
    biases = _decode(members["logit_bias"]) if "logit_bias" in members else None
    if biases == {}:
        del members["logit_bias"]
    elif isinstance(biases, dict) and all(map(_is_bias, biases.values())):
        put(members, {"logit_bias": {token: float(each) for token, each in biases.items()}})


def _is_bias(value: Any) -> bool:
    return isinstance(value, int | float) and -100 <= value <= 100


class _BeforeStops(Translation):
    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops

    def document(self, said: Any) -> Any:
        if isinstance(said, dict) and isinstance(said.get("choices"), list):
            for choice in filter(_is_choice, said["choices"]):
                part, field = (choice, "text") if "text" in choice else (choice.get("message"), "content")
                if isinstance(part, dict) and isinstance(part.get(field), str):
                    part[field] = self._stops.before(choice["index"], part[field])
                self._say_why(choice)
        return said

    def event(self, said: dict[str, Any]) -> list[dict[str, Any]]:
        if not isinstance(said.get("choices"), list):
            return [said]
        said["choices"] = [each for each in said["choices"] if not _is_choice(each) or self._says(each)]
        return [said] if said["choices"] or said.get("usage") else []

    def end(self) -> list[dict[str, Any]]:
        return []

    def _says(self, choice: dict[str, Any]) -> bool:
        """Cut a choice of an event. Returns whether there is anything of it left."""
        index, delta, ends = choice["index"], choice.get("delta"), choice.get("finish_reason") is not None
        part, field = (delta, "content") if isinstance(delta, dict) else (choice, "text")
        text = part.get(field)
        told = self._stops.piece(index, text) if isinstance(text, str) else ""
        told += self._stops.rest(index) if ends else ""
        if isinstance(text, str) or told:
            part[field] = told
        self._say_why(choice)
        return ends or bool(told) or not isinstance(text, str)

    def _say_why(self, choice: dict[str, Any]) -> None:
        if choice["index"] in self._stops.found and choice.get("finish_reason") == "length":
            choice["finish_reason"] = "stop"


def _is_choice(each: Any) -> bool:
    return isinstance(each, dict) and isinstance(each.get("index"), int)
