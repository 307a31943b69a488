"""What comes before the first token is not the first token; a stream is whole when it says so; usage that only we asked
for stays with us."""

import json
import re
import sys
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.gateway.beginning import Beginning, Kind, fault_of
from headwater_router.gateway.events import StreamReader, UsageFilter
from headwater_router.gateway.usage import Usage, UsageFinder

FIXTURES = Path(__file__).parents[1] / "fixtures"


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
    "a delta of a response": data(type="response.output_text.delta", delta="Hi"),
    "a delta of a message": data(type="content_block_delta", delta={"text": "Hi"}),
    "a format of its own": b"data: {token}\n\n",
    "a token of TGI's": data(token={"id": 1, "text": "Hi"}),
}
ENDS = {
    "the end of an empty answer": data(choices=[{"delta": {}, "finish_reason": "stop"}]),
    "the end of an empty response": data(type="response.completed", response={"output": []}),
    "the end of an empty message": b"event: message_stop\n" + data(type="message_stop"),
}
ERRORS = {
    "OpenAI's": data(error={"message": "no", "code": 500}),
    "TGI's": data(error={"message": "no", "http_status_code": 422}),
    "the responses API's": data(type="response.failed", response={}),
    "Anthropic's": data(type="error", error={"type": "overloaded_error"}),
    "an older vLLM's": data(object="error", message="no", code="400"),
    "one that only its event's name tells of": b"event: error\ndata: boom\n\n",
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
            st.sampled_from([(Kind.END, each) for each in ENDS.values()]),
            st.sampled_from([(Kind.ERROR, each) for each in ERRORS.values()]),
            st.sampled_from([(Kind.NOTHING, b""), (Kind.NOTHING, b"data: [DONE]\n\n")]),
        )
    )
    stream = before + then
    assert kind_of(stream, draw.draw(st.integers(0, len(stream)))) is expected


def test_an_error_event_says_which_status_it_stands_for() -> None:
    statuses = {"OpenAI's": 500, "TGI's": 422, "the responses API's": None, "Anthropic's": 429, "an older vLLM's": 400}
    for name, status in statuses.items():
        beginning = Beginning()
        assert beginning.feed(ERRORS[name]) is Kind.ERROR
        assert (beginning.fault.reason, beginning.fault.status) == ("an error event", status)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_where_streams_have_a_known_form_nothing_else_is_content(path: str) -> None:
    assert Beginning(path).feed(b"data: boom\n\ndata: 1\n\ndata: [DONE]\n\n") is Kind.NOTHING
    assert Beginning("/generate").feed(b"data: boom\n\n") is Kind.CONTENT


CHAT = "/v1/chat/completions"
ANSWERS = {
    CHAT: b'{"id":"1","choices": [{"message":{}}]}',
    "/v1/completions": b'{"choices":[{"text":""}],"error":null}',
    "/v1/responses": b'{"error":null,"output":[]}',
    "/v1/messages": b'{"type":"message","content":[]}',
    "/v1/embeddings": b'{"object":"list"}',
    "/v1/audio/speech": b"RIFF",
}


@pytest.mark.parametrize(("path", "answer"), ANSWERS.items())
def test_an_answer_is_one_as_far_as_can_be_seen(path: str, answer: bytes) -> None:
    assert all(fault_of(path, answer[:cut], whole=cut == len(answer)) is None for cut in range(1, len(answer) + 1))


@pytest.mark.parametrize(
    ("path", "answer", "reason", "status"),
    [
        (CHAT, b' {"error": {"message":"no","code":429}}', "an error with status 200", 429),
        ("/v1/embeddings", b'{"object":"error","code":"400"}', "an error with status 200", 400),
        (CHAT, b'{"error":"no"}', "an error with status 200", None),
        (CHAT, b"", "an empty answer", None),
        (CHAT, b"<html>", "an answer that is no JSON", None),
        (CHAT, b'{"choices":[]}', "an answer that says nothing", None),
        ("/v1/messages", b"{}", "an answer that says nothing", None),
    ],
)
def test_a_page_with_status_200_is_no_answer(path: str, answer: bytes, reason: str, status: int | None) -> None:
    fault = fault_of(path, answer, whole=True)
    assert fault is not None
    assert (fault.reason, fault.status) == (reason, status)


def test_a_beginning_that_does_not_end_is_content() -> None:
    beginning = Beginning()
    kinds = {beginning.feed(b": " + b"x" * 1000 + b"\n") for _ in range(100)}
    assert kinds == {Kind.NOTHING, Kind.CONTENT}


@given(st.binary(max_size=200), st.integers(0, 200))
def test_whatever_an_engine_streams_is_read_without_a_failure(stream: bytes, cut: int) -> None:
    kind_of(b"data: " + stream, cut)
    fault_of(CHAT, stream, whole=True)
    kept = StreamReader()
    kept.hide_usage()
    assert kept.feed(stream[:cut]) + kept.feed(stream[cut:]) + kept.end() == stream or b'"usage"' in stream
    assert kept.usage is None or b'"usage"' in stream


def read(stream: bytes, size: int = 1 << 20, path: str = CHAT) -> StreamReader:
    reader = StreamReader(path)
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
    return reader


SIZES = pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
RECORDED = sorted((Path(__file__).parents[1] / "fixtures").glob("*/chat-stream.txt"))


@SIZES
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_recorded_streams_are_whole_and_cut_ones_are_not(path: Path, size: int) -> None:
    events = [line for line in path.read_bytes().split(b"\n\n") if line.strip().startswith(b"data:")]
    assert not read(b"\n\n".join(events), size).lacks_end
    assert read(events[0], size).lacks_end
    # Why it finished is an end where nothing breaks, but usage and the mark of the end may be missing.
    finished = read(chunk(content="Hi") + data(choices=[{"delta": {}, "finish_reason": "stop"}]), size)
    assert (finished.over, finished.lacks_end) == (False, False)


LONG = [{"type": "message", "content": "word " * 5000}]


@SIZES
def test_a_stream_of_the_responses_or_messages_api_has_an_end_of_its_own(size: int) -> None:
    responses, messages = "/v1/responses", "/v1/messages"
    assert read(data(type="response.completed", response={"output": LONG}), size, responses).over
    assert read(b"event: response.completed\n" + data(response={"output": LONG}, type="odd"), size, responses).over
    assert read(b'event: message_stop\ndata: {"type":"message_stop"}\n\n', size, messages).over
    assert not read(data(type="response.output_text.delta", delta="[DONE] response.completed"), size, responses).over
    assert not read(b"anything", size, "/v1/audio/speech").lacks_end
    for path in (responses, messages):
        assert read(data(choices=[{"delta": {}, "finish_reason": "stop"}]), size, path).lacks_end, (
            "that is a chat's end"
        )


@SIZES
def test_no_text_of_an_answer_is_taken_for_its_end_or_for_an_error(size: int) -> None:
    said = (
        'data: [DONE]\n"finish_reason":"stop" "type":"message_stop"\n'
        'data: {"error":"no"}\nevent: error "usage":{"prompt_tokens":9}'
    )
    reader = read(chunk(content=said) * 3, size)
    assert (reader.over, reader.told_error, reader.usage) == (False, False, None)


@SIZES
@pytest.mark.parametrize("event", ERRORS.values(), ids=ERRORS)
def test_an_error_event_is_seen_wherever_it_stands(event: bytes, size: int) -> None:
    long = event.replace(b'"no"', b'"' + b"no " * 3000 + b'"')
    assert read(chunk(content="Hi") + long + chunk(content="Hi") * 20 + b"data: [DONE]\n\n", size).told_error


NAIVE = {
    "/v1/chat/completions": rb"(?:^|\n)data: ?\[DONE\]",
    "/v1/responses": rb"(?:^|\n)event: ?response\.(?:completed|incomplete|failed)|"
    rb'"type" ?: ?"response\.(?:completed|incomplete|failed)',
    "/v1/messages": rb'(?:^|\n)event: ?message_stop|"type" ?: ?"message_stop',
}
PIECES = st.sampled_from(
    [b"\n", b"\n\n", b"data:", b"data: ", b"event:", b"event: ", b"[DONE]", b"[DONE", b'"type"', b":", b" : ", b" ",
     b'"', b"{", b"response.", b"completed", b"incomplete", b"response.failed", b"message_stop", b"error", b'"error"',
     b"\ndata: [DONE]", b"event:message_stop", b'"type": "response.completed', b'\ndata: {"type" : "error"', b"x" * 40]
)  # fmt: skip


@given(path=st.sampled_from(sorted(NAIVE)), pieces=st.lists(PIECES, max_size=60), size=st.integers(1, 50))
def test_an_end_and_an_error_are_where_an_expression_over_all_of_it_finds_them(
    path: str, pieces: list[bytes], size: int
) -> None:
    """They are looked for by single words, and what stands before these."""
    stream, reader = b"".join(pieces), StreamReader(path)
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
    error = (
        rb'(?:^|\n)(?:data: ?\{ ?"(?:error" ?: ?[{"]|object" ?: ?"error"|type" ?: ?"(?:error|response\.failed)")'
        rb"|event: ?(?:error|response\.failed))"
    )
    assert reader.over == (re.search(NAIVE[path], stream) is not None)
    assert reader.told_error == (re.search(error, stream) is not None)


@pytest.mark.parametrize("word", [b"error ", b"response.failed", b"[DONE]", b'reason":"'])
def test_a_word_that_comes_often_costs_no_call_each_time(word: bytes) -> None:
    reader, calls = StreamReader("/v1/chat/completions"), 0

    def count(_frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        reader.feed(b"data: " + word * 10_000 + b"\n\n")
    finally:
        sys.setprofile(before)
    assert calls < 200


def test_an_error_that_is_null_is_none() -> None:
    assert not read(data(error=None, choices=[]) + b'data: {"error":null}\n\n').told_error


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
    kept_back = UsageFilter()
    passed = b"".join(map(kept_back.feed, pieces)) + kept_back.end()
    assert passed == b"".join(kept).replace(b"\n\n", separator)


def test_an_event_that_never_ends_is_not_kept() -> None:
    kept_back = UsageFilter()
    passed = sum(len(kept_back.feed(b"x" * 1024)) for _ in range(100))
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
        (b'"usage":{"prompt_tokens":' + b"9" * 400, None),
        (b'"usage":{"prompt_tokens":3,"completion_tokens":1000000000}}', Usage(3, None, None)),
        (b'"usage":{"prompt_tokens":3,"completion_tokens":1e9}}', Usage(3, None, None)),
        (b'"usage":{"prompt_tokens":3,"completion_tokens":-7}}', Usage(3, None, None)),
        (b'"usage":{"prompt_tokens":3,"completion_tokens":"7"}}', Usage(3, None, None)),
    ],
)
def test_usage_is_found_in_every_dialect_and_nowhere_else(tail: bytes, usage: Usage | None) -> None:
    for size in (1, 5, 64, 1 << 20):
        finder = UsageFinder()
        for start in range(0, len(tail), size):
            finder.feed(tail[start : start + size])
        assert finder.usage == usage


def test_usage_is_found_with_much_behind_it() -> None:
    answer = (
        b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5},"prompt_logprobs":[' + b"0," * 9000 + b"0]}"
    )
    finder = UsageFinder()
    for start in range(0, len(answer), 1000):
        finder.feed(answer[start : start + 1000])
    assert finder.usage == Usage(3, None, 5)


def test_what_the_last_usage_leaves_out_the_first_has_told() -> None:
    start = data(type="message_start", message={"usage": {"input_tokens": 7, "cache_read_input_tokens": 4}})
    end = data(type="message_delta", usage={"output_tokens": 5}) + data(type="message_stop")
    assert read(start + data(type="content_block_delta", delta={"text": "Hi"}) + end, 50).usage == Usage(7, 4, 5)


def test_each_byte_of_an_event_is_looked_at_a_few_times_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    class Counted(bytearray):
        def rfind(self, what: bytes, start: int = 0) -> int:  # type: ignore[override]
            nonlocal looked
            looked += len(self) - start
            return super().rfind(what, start)

    kept_back = UsageFilter()
    kept_back.rest = Counted()
    for _ in range(3000):
        kept_back.feed(b"[] x" * 5)
    assert looked < 3 * 60_000


class Counted(bytearray):
    """Counts the bytes that are searched."""

    searched = 0

    def rfind(self, mark: bytes, start: int = 0) -> int:  # type: ignore[override]
        Counted.searched += len(self) - start
        return super().rfind(mark, start)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_to_hold_back_costs_by_bytes_however_a_stream_is_cut(size: int) -> None:
    stream = (chunk(content="x") * 300 + data(choices=[], usage={}) + b"data: " + b"y" * 30_000 + b"\n\n") * 2
    kept_back, Counted.searched = UsageFilter(), 0
    kept_back.rest = Counted()
    told = b"".join(kept_back.feed(stream[start : start + size]) for start in range(0, len(stream), size))
    assert told + kept_back.end() == stream.replace(data(choices=[], usage={}), b"")
    assert Counted.searched < 12 * len(stream)


def test_the_usage_of_a_response_tells_what_was_cached() -> None:
    """Of the responses API, as SGLang recorded it, whole and in a stream."""
    recorded = (FIXTURES / "sglang-0.5.23" / "responses.txt").read_bytes().strip().rpartition(b"\n\n")[2]
    event = b'event: response.completed\ndata: {"type":"response.completed","response":' + recorded + b"}\n\n"
    for answer in (recorded, event):
        finder = UsageFinder()
        finder.feed(answer)
        assert finder.usage == Usage(31, 30, 2)
