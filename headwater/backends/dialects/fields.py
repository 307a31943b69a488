"""Fields of a request that a server refuses, or passes over in silence: gone where they ask for nothing."""

from collections.abc import Mapping
from types import NoneType
from typing import Any, Final

import msgspec
from msgspec import Raw

from headwater.backends.dialects.base import UnsupportedRequestError
from headwater.openai.errors import BadRequestError

_IDLE: Final = frozenset(
    ("metadata", "prediction", "priority", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
     "request_id", "safety_identifier", "service_tier", "session_id", "store", "stream_options", "user")
)  # fmt: skip
"""Change nothing of what is said, whatever they hold."""
_USUAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_generation_prompt": (True,),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": ({},),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("auto",),
    "tools": ([],),
    "top_k": (-1, 0),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}
"""What any server does that does not know the field."""
_LONGEST: Final = 64
"""Bytes of a value that may be one of these."""
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode


def keep_known(members: dict[str, Raw], known: frozenset[str]) -> dict[str, Raw]:
    """Only what the server knows. Raises UnsupportedRequestError for a further field that asks for something."""
    kept = {}
    for name, raw in members.items():
        if name in known:
            kept[name] = raw
        elif name not in _IDLE and not asks_nothing(name, raw):
            raise UnsupportedRequestError(name, "cannot be done by the server of this model")
    return kept


def refuse_ignored(members: dict[str, Raw], ignored: frozenset[str]) -> None:
    """Raises UnsupportedRequestError for one of these that asks for something: the server would pass over it."""
    for name in members.keys() & ignored:
        if not asks_nothing(name, members[name]):
            raise UnsupportedRequestError(name, "cannot be done by the server of this model")


def take_special_tokens(path: str, members: dict[str, Raw]) -> None:
    """`add_special_tokens`: who does not know the field adds them to texts, and not to chats. Raises
    UnsupportedRequestError."""
    raw = members.pop("add_special_tokens", None)
    if raw is not None and _decode(raw) not in (None, path != "/v1/chat/completions"):
        raise UnsupportedRequestError("add_special_tokens", "cannot be done by the server of this model")


def put_thinking(members: dict[str, Raw]) -> None:
    """`enable_thinking` as variables of the chat template, under both names that templates have for it. Those that are
    there win."""
    if (raw := members.pop("enable_thinking", None)) is None or (thinks := _decode(raw)) is None:
        return
    given = _decode(members["chat_template_kwargs"]) if "chat_template_kwargs" in members else None
    if not isinstance(thinks, bool) or not isinstance(given, dict | NoneType):
        raise BadRequestError(
            "`enable_thinking` must be true or false, and `chat_template_kwargs` an object.", param="enable_thinking"
        )
    variables = {"enable_thinking": thinks, "thinking": thinks} | (given or {})
    members["chat_template_kwargs"] = Raw(_encode(variables))


def asks_nothing(name: str, raw: Raw) -> bool:
    if len(raw) > _LONGEST:
        return False
    value = _decode(raw)
    # 1 is True to Python, and `logprobs` of 0 is no False.
    return value is None or any(value == each and _is_flag(value) is _is_flag(each) for each in _USUAL.get(name, ()))


def without_tools_not_to_be_called(members: dict[str, Raw]) -> None:
    """As servers do it that know no `tool_choice`: tools that they are not told of are not called."""
    if bytes(members.get("tool_choice", b"")).strip() == b'"none"':
        del members["tool_choice"]
        members.pop("tools", None)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)
