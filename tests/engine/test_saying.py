"""Events of which only the text is encoded are, byte for byte, those that are encoded as a whole."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.openai.chat import ChatCompletionChunk, ChatCompletionRequest, ChunkChoice, Delta
from headwater.openai.completions import Completion, CompletionChoice, CompletionRequest
from headwater.openai.stream import event
from headwater.openai.usage import Usage
from headwater_engine.config import EngineSettings
from headwater_engine.formats.parts import Content, Reasoning
from headwater_engine.sampling.params import SamplingParams
from headwater_engine.server import chat, completions
from headwater_engine.server.answer import Form, Piece
from headwater_engine.server.asking import Question
from headwater_engine.server.saying import STAND_IN
from headwater_engine.server.served_model import ServedModel

USAGES: dict[str, dict[str, Any]] = {"none": {}, "last": {"stream_options": {"include_usage": True}}}
NO_USAGE: dict[str, dict[str, Any]] = {"none": {}, "last": {"usage": None}}
"""What chunks before the last say of it."""
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
QUESTION = Question(id="some-id", prompts=[[1]], params=SamplingParams(max_tokens=9), n=2, model=f'a "{STAND_IN}" name')


@cache
def model() -> ServedModel:
    return ServedModel(EngineSettings(model="random:tiny", served_model_name=[QUESTION.model]))


def unused() -> Usage:
    raise AssertionError("nobody asked for the usage")


def written(form: Form, *pieces: Piece) -> list[bytes]:
    """Event by event."""
    return [each + b"\n\n" for piece in pieces for each in form.piece(piece, unused).split(b"\n\n") if each]


def created(events: list[bytes]) -> int:
    return int(json.loads(events[0].removeprefix(b"data: "))["created"])


@pytest.mark.parametrize("usage", USAGES)
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([Content, Reasoning]), TEXTS), min_size=1, max_size=8))
def test_texts_of_a_chat(usage: str, said: list[tuple[int, type[Content | Reasoning], str]]) -> None:
    body = {"messages": [{"role": "user", "content": "?"}], "stream": True, **USAGES[usage]}
    form = chat.form(model(), ChatCompletionRequest.model_validate(body), QUESTION)
    events = written(form, *(Piece(index, [kind(text)], []) for index, kind, text in said))
    deltas, begun = [], set()
    for index, kind, text in said:
        if index not in begun:
            begun.add(index)
            deltas.append((index, Delta(role="assistant", content="")))
        deltas.append((index, Delta(content=text) if kind is Content else Delta(reasoning_content=text)))
    head = {"id": QUESTION.id, "created": created(events), "model": QUESTION.model, **NO_USAGE[usage]}
    choices = [ChunkChoice(index=index, delta=delta, finish_reason=None) for index, delta in deltas]
    assert events == [event(ChatCompletionChunk(choices=[choice], **head)) for choice in choices]


@pytest.mark.parametrize("usage", USAGES)
@given(st.lists(st.tuples(st.integers(0, 1), TEXTS), min_size=1, max_size=8))
def test_texts_of_a_completion(usage: str, said: list[tuple[int, str]]) -> None:
    request = CompletionRequest.model_validate({"prompt": [1], "n": 2, "stream": True, **USAGES[usage]})
    events = written(
        completions.form(model(), request, QUESTION), *(Piece(index, [Content(text)], []) for index, text in said)
    )
    head = {"id": QUESTION.id, "created": created(events), "model": QUESTION.model, **NO_USAGE[usage]}
    choices = [CompletionChoice(index=index, text=text, finish_reason=None, logprobs=None) for index, text in said]
    assert events == [event(Completion(choices=[choice], **head)) for choice in choices]
