"""What `transformers serve` leaves to the gateway: to tell what comes before a stop string, and nothing behind it."""

import json
from typing import Any

import pytest
from msgspec import Raw

from headwater.backends.dialects.base import Translation
from headwater.backends.dialects.transformers import TransformersDialect

CHAT = "/v1/chat/completions"
DIALECT = TransformersDialect()


def translation(stop: Any) -> Translation | None:
    members = DIALECT.request(CHAT, {"model": Raw(b'"m"'), "stop": Raw(json.dumps(stop).encode())})
    return DIALECT.translation(CHAT, members, "m", "r")


def piece(text: str | None, reason: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta} | ({"finish_reason": reason} if reason else {})]}


def test_an_empty_list_of_stop_strings_is_left_out() -> None:
    assert DIALECT.request(CHAT, {"stop": Raw(b"[]")}) == {}


@pytest.mark.parametrize(
    ("biases", "told"),
    [('{"5":100,"6":-0.5}', b'{"5":100.0,"6":-0.5}'), ('{"5":1e3}', b'{"5":1e3}'), ('{"5":"a"}', b'{"5":"a"}')],
)
def test_biases_are_told_as_fractions_where_they_are_such_as_openai_takes(biases: str, told: bytes) -> None:
    assert DIALECT.request(CHAT, {"logit_bias": Raw(biases.encode())}) == {"logit_bias": Raw(told)}


def test_no_biases_are_left_out() -> None:
    assert DIALECT.request(CHAT, {"logit_bias": Raw(b"{}")}) == {}


@pytest.mark.parametrize("stop", [None, []])
def test_an_answer_without_stop_strings_keeps_its_bytes(stop: Any) -> None:
    assert translation(stop) is None


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("stop", ["[n", ["[n", "never said"]])
def test_an_answer_says_what_comes_before_the_stop_string(stop: Any, reason: str) -> None:
    chat = {"choices": [{"index": 0, "message": {"content": "n[n", "role": "assistant"}, "finish_reason": reason}]}
    text = {"choices": [{"index": 0, "text": "n[n", "finish_reason": reason}]}
    for said in (chat, text):
        translated = translation(stop)
        assert translated is not None
        [choice] = translated.document(said)["choices"]
        assert (choice.get("message", {}).get("content") or choice.get("text"), choice["finish_reason"]) == (
            "n",
            "stop",
        )


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        (["n", "[", "n"], "n"),
        (["n[n"], "n"),
        (["n", "[", "x"], "n[x"),
        (["n", "["], "n["),
        (["n", "[n", "goes", "on"], "n"),  # as with --continuous-batching
    ],
)
def test_a_stream_says_what_comes_before_the_stop_string(pieces: list[str], told: str, reason: str) -> None:
    translated = translation("[n")
    assert translated is not None
    events = [piece(each) for each in pieces] + [piece(None, reason) | {"usage": {"total_tokens": 3}}]
    seen = [event for each in events for event in translated.event(each)] + translated.end()
    texts = [event["choices"][0]["delta"].get("content") for event in seen]
    assert "".join(filter(None, texts)) == told
    assert "" not in texts, "what says nothing is not told"
    assert seen[-1]["choices"][0]["finish_reason"] == ("stop" if "[n" in "".join(pieces) else reason)
    assert seen[-1]["usage"]
