"""What comes before the first token is not the first token; a stream is whole when it says so; usage that only we asked
for stays with us."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.gateway.events import Beginning, Kind, UsageFilter, ends_in_error, is_whole
from headwater_router.gateway.usage import TAIL, Usage, find_usage


def data(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chunk(**delta: object) -> bytes:
    return data(choices=[{"index": 0, "delta": delta, "finish_reason": None}])


BEFORE = {
    "a comment": b": ping\n\n",
    "blank lines": b"\n\n\r\n",
    "a role": chunk(role="assistant"),
    "a role and an empty text": chunk(role="assistant", content=""),
    "an empty completion": data(choices=[{"text": ""}]),
    "a response that was created": b"event: response.created\n"
    + data(type="response.created", response={"id": "resp_1"}),
    "a message that starts": b"event: message_start\n" + data(type="message_start", message={}),
    "usage so far": data(choices=[], usage={"prompt_tokens": 3}),
}
CONTENT = {
    "text": chunk(content="Hi"),
    "a thought": chunk(reasoning_content="Hm"),
    "a tool call": chunk(tool_calls=[{"index": 0}]),
    "a completion's text": data(choices=[{"text": "Hi"}]),
    "the end of an empty answer": data(choices=[{"delta": {}, "finish_reason": "stop"}]),
    "a delta of a response": data(type="response.output_text.delta", delta="Hi"),
    "a delta of a message": data(type="content_block_delta", delta={"text": "Hi"}),
    "a format of its own": b"data: {token}\n\n",
    "a token of TGI's": data(token={"id": 1, "text": "Hi"}),
    "the mark of the end": b"data: [DONE]\n\n",
}
ERRORS = {
    "OpenAI's": data(error={"message": "no", "code": 500}),
    "TGI's": data(error={"message": "no", "http_status_code": 422}),
    "the responses API's": data(type="response.failed", response={}),
    "Anthropic's": b"event: error\n" + data(type="error", error={"type": "overloaded_error"}),
}


def kind_of(stream: bytes, cut: int) -> Kind:
    beginning = Beginning()
    first = beginning.feed(stream[:cut])
    return first if first is not Kind.NOTHING else beginning.feed(stream[cut:])


@given(st.data())
def test_only_content_is_the_first_token_however_it_is_cut(draw: st.DataObject) -> None:
    before = b"".join(draw.draw(st.lists(st.sampled_from(list(BEFORE.values())), max_size=4)))
    expected, then = draw.draw(
        st.one_of(
            st.sampled_from([(Kind.CONTENT, each) for each in CONTENT.values()]),
            st.sampled_from([(Kind.ERROR, each) for each in ERRORS.values()]),
            st.just((Kind.NOTHING, b"")),
        )
    )
    stream = before + then
    assert kind_of(stream, draw.draw(st.integers(0, len(stream)))) is expected


def test_an_error_event_says_which_status_it_stands_for() -> None:
    for event, status in ((ERRORS["OpenAI's"], 500), (ERRORS["TGI's"], 422), (ERRORS["Anthropic's"], None)):
        beginning = Beginning()
        assert beginning.feed(event) is Kind.ERROR
        assert beginning.status == status


def test_a_beginning_that_does_not_end_is_content() -> None:
    beginning = Beginning()
    kinds = {beginning.feed(b": " + b"x" * 1000 + b"\n") for _ in range(100)}
    assert kinds == {Kind.NOTHING, Kind.CONTENT}


@given(st.binary(max_size=200), st.integers(0, 200))
def test_whatever_an_engine_streams_is_read_without_a_failure(stream: bytes, cut: int) -> None:
    kind_of(b"data: " + stream, cut)
    is_whole(stream), ends_in_error(stream), find_usage(stream)
    kept = UsageFilter()
    assert kept.feed(stream[:cut]) + kept.feed(stream[cut:]) + kept.end() == stream or b'"usage"' in stream


RECORDED = sorted((Path(__file__).parents[1] / "fixtures").glob("*/chat-stream.txt"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_recorded_streams_are_whole_and_cut_ones_are_not(path: Path) -> None:
    events = [line for line in path.read_bytes().split(b"\n\n") if line.strip().startswith(b"data:")]
    assert is_whole(b"\n\n".join(events)[-TAIL:])
    assert not is_whole(events[0])


def test_a_stream_of_the_responses_or_messages_api_has_an_end_of_its_own() -> None:
    assert is_whole(data(type="response.completed", response={}))
    assert is_whole(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert not is_whole(data(type="response.output_text.delta", delta="[DONE]"))


def test_an_error_event_at_the_end_is_seen() -> None:
    assert all(ends_in_error(chunk(content="Hi") + event + b"data: [DONE]\n\n") for event in ERRORS.values())
    assert not ends_in_error(chunk(content='{"error": 1}') + b"data: [DONE]\n\n")


# Usage

USAGE = data(
    choices=[], usage={"prompt_tokens": 40, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 32}}
)


@given(st.data())
def test_only_the_usage_event_is_taken_out_however_it_is_cut(draw: st.DataObject) -> None:
    separator = draw.draw(st.sampled_from([b"\n\n", b"\r\n\r\n"]))
    kept = [chunk(content="[]"), chunk(content="Hi"), b"data: [DONE]\n\n"]
    whole = b"".join([*kept[:-1], USAGE, kept[-1]]).replace(b"\n\n", separator)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    usage = UsageFilter()
    passed = b"".join(map(usage.feed, pieces)) + usage.end()
    assert passed == b"".join(kept).replace(b"\n\n", separator)


def test_an_event_that_never_ends_is_not_kept() -> None:
    usage = UsageFilter()
    passed = sum(len(usage.feed(b"x" * 1024)) for _ in range(100))
    assert passed >= 30 * 1024


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b'"usage":{"prompt_tokens":3,"completion_tokens":5}}', Usage(3, None, 5)),
        (b'"usage": {"input_tokens": 3, "output_tokens": 5}', Usage(3, None, 5)),
        (b'"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8},"output_tokens":1}', Usage(9, 8, 1)),
        (USAGE + b": a comment\n\ndata: [DONE]\n\n", Usage(40, 32, 7)),
        (b'"content":"\\"usage\\":{\\"prompt_tokens\\":9}"', None),
        (b'"prompt_tokens":9', None),
        (b'"usage":null', None),
        (b'"usage":{"prompt_tokens":' + b"9" * 400, Usage(int("9" * 15), None, None)),
    ],
)
def test_usage_is_found_in_every_dialect_and_nowhere_else(tail: bytes, usage: Usage | None) -> None:
    assert find_usage(tail) == usage
