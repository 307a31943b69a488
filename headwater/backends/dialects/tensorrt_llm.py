"""TensorRT-LLM, as read in its `openai_protocol.py` (0076e93 of its repository).

It refuses what it does not know, has a form only in a `response_format` of its own, and calls no tool unless it is told
that it may.
"""

from typing import Any, Final

from msgspec import Raw

from headwater.backends.dialects.base import Dialect, UnsupportedRequestError
from headwater.backends.dialects.fields import asks_nothing, keep_known, put_thinking
from headwater.backends.dialects.forms import as_ebnf, as_regex, as_response_format, put, take_form
from headwater.openai.constraint import Constraint, Kind

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_OWN: Final = frozenset(("response_format",))
_BOTH: Final = frozenset(
    ("model", "best_of", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
     "response_format", "seed", "stop", "stream", "stream_options", "temperature", "top_p", "user", "lora_request",
     "prompt_ignore_length", "use_beam_search", "top_k", "top_p_min", "min_p", "repetition_penalty", "length_penalty",
     "early_stopping", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens",
     "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "thinking_token_budget",
     "add_special_tokens", "echo", "disaggregated_params", "conversation_params")
)  # fmt: skip
KNOWN: Final = {
    _CHAT: _BOTH
    | frozenset(
        ("messages", "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls",
         "reasoning_effort", "thinking", "add_generation_prompt", "documents", "chat_template", "chat_template_kwargs",
         "media_io_kwargs", "mm_processor_kwargs", "cache_salt", "agent_hierarchy")
    ),
    _COMPLETIONS: _BOTH | {"prompt", "suffix", "return_context_logits", "detokenize"},
}  # fmt: skip
"""`priority` is none of them: it is a share there, and the greater one goes first."""


class TensorRTLLMDialect(Dialect):
    server = "TensorRT-LLM"
    paths = frozenset(KNOWN)
    kinds = frozenset((Kind.JSON_SCHEMA, Kind.REGEX, Kind.CHOICE, Kind.GRAMMAR))

    def request(self, path: str, members: dict[str, Raw]) -> dict[str, Raw]:
        given = {name: raw for name, raw in members.items() if bytes(raw).strip() != b"null"}
        if (asked := take_form(given, _OWN, self.kinds)) is not None:
            put(given, _written(*asked))
        if path == _CHAT:
            put_thinking(given)
        if "max_completion_tokens" in given:  # There they are two names of one field.
            given.pop("max_tokens", None)
        if path == _COMPLETIONS and "echo" in given and "logprobs" in given and not asks_nothing("echo", given["echo"]):
            raise UnsupportedRequestError("logprobs", "are not those of the prompt with the server of this model")
        if (
            bytes(given.get("tool_choice", b"")).lstrip().startswith(b"{")
            and bytes(given.get("stream", b"")) == b"true"
        ):
            # It would say the name with each piece of the arguments, and no id.
            raise UnsupportedRequestError(
                "tool_choice", "cannot name a function in a stream of the server of this model"
            )
        if "tools" in given:
            given.setdefault("tool_choice", Raw(b'"auto"'))
        return keep_known(given, KNOWN[path])


def _written(name: str, form: Constraint) -> dict[str, Any]:
    match form.kind:
        case Kind.JSON_SCHEMA:
            return as_response_format(form)
        case Kind.GRAMMAR:
            return {"response_format": {"type": "ebnf", "ebnf": as_ebnf(name, form)}}
    return {"response_format": {"type": "regex", "regex": as_regex(form)}}
