"""SGLang's dialect: null is nothing, a stop string is kept in its own word, and forms are in test_dialect_forms."""

import json
from typing import Any

from msgspec import Raw

from headwater.backends.dialects.sglang import SGLangDialect
from headwater_router.gateway.translating import translated

CHAT = "/v1/chat/completions"


def written(**members: Any) -> dict[str, Any]:
    raws = {name: Raw(json.dumps(value).encode()) for name, value in members.items()}
    return {name: json.loads(bytes(raw)) for name, raw in SGLangDialect().request(CHAT, raws).items()}


def test_null_is_nothing() -> None:
    """It answers 400 to a `stream` of null, which others take for false."""
    assert written(model="m", stream=None, stop=None, n=1) == {"model": "m", "n": 1}


def test_a_stop_string_is_kept_where_that_is_asked_for() -> None:
    assert written(include_stop_str_in_output=True) == {"no_stop_trim": True}
    assert written(include_stop_str_in_output=False) == {}
    assert written(include_stop_str_in_output=True, no_stop_trim=False) == {"no_stop_trim": False}


def test_what_it_takes_keeps_its_bytes_and_no_answer_is_read() -> None:
    body = b'{ "model":"m", "messages": [],\n"temperature":1.0}'
    done = translated(SGLangDialect(), CHAT, body, "m", "1")
    assert done is not None
    assert (done.body, done.translation) == (body, None)
