"""SGLang 0.5.23, as recorded from it.

Its API is OpenAI's, but for null, which it refuses where a value cannot be missing. A stop string is kept in the text
by a field of its own name. What it does not know it ignores, with status 200: other ways to ask for a form, and much
that vLLM has.
"""

import json
from typing import Any, Final

import msgspec
from msgspec import Raw

from headwater.backends.dialects.base import Dialect
from headwater.backends.dialects.fields import put_thinking, refuse_ignored, take_special_tokens
from headwater.backends.dialects.forms import as_ebnf, as_regex, as_response_format, put, take_form
from headwater.openai.constraint import Constraint, Kind

_OWN: Final = frozenset(("response_format", "regex", "ebnf"))
_CHAT: Final = "/v1/chat/completions"
_IGNORED: Final = frozenset(
    ("allowed_token_ids", "audio", "bad_words", "function_call", "functions", "include_reasoning", "kv_transfer_params",
     "logits_processors", "logprob_token_ids", "modalities", "prompt_logprobs", "repetition_detection",
     "return_token_offsets", "return_tokens_as_token_ids", "spaces_between_special_tokens", "thinking_token_budget",
     "truncate_prompt_tokens", "use_beam_search", "verbosity", "vllm_xargs", "watermarking", "web_search_options")
)  # fmt: skip
_IGNORED_IN_CHATS: Final = _IGNORED | {
    "add_generation_prompt",
    "chat_template",
    "documents",
    "echo",
    "return_prompt_text",
}
_KEEP_STOP, _OWN_KEEP_STOP = "include_stop_str_in_output", "no_stop_trim"
_decode: Final = msgspec.json.Decoder().decode


class SGLangDialect(Dialect):
    server = "SGLang"
    paths = frozenset((_CHAT, "/v1/completions"))
    kinds = frozenset(Kind)

    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        given = {name: raw for name, raw in members.items() if bytes(raw).strip() != b"null"}
        if (asked := take_form(given, _OWN, self.kinds)) is not None:
            put(given, _written(*asked))
        if _KEEP_STOP in given and _decode(keep := given.pop(_KEEP_STOP)) is True:
            given.setdefault(_OWN_KEEP_STOP, keep)
        if path == _CHAT:
            put_thinking(given)
        take_special_tokens(path, given)
        refuse_ignored(given, _IGNORED_IN_CHATS if path == _CHAT else _IGNORED)
        return given


def _written(name: str, form: Constraint) -> dict[str, Any]:
    match form.kind:
        case Kind.JSON_SCHEMA:
            return as_response_format(form)
        case Kind.GRAMMAR:
            return {"ebnf": as_ebnf(name, form)}
        case Kind.STRUCTURAL_TAG:
            return {"response_format": {"type": "structural_tag", **json.loads(form.text)}}
    return {"regex": as_regex(form)}
