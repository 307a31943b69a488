"""What the router reads of a body: as little as it must, what the engine reads, and nothing that it refuses for it."""

import json
import sys
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.openai.errors import BadRequestError
from headwater_router.gateway.body import asking_for_usage, read_body, with_cache_salt, with_model
from tests.router.gateway import BODY, CHAT, error_of, gateway
from tests.router.upstream import upstream

LONG = b"A headwater is where streams begin. " * 100
LENIENT = {
    "a lone surrogate": b'{"model":"m","stream":true,"messages":[{"role":"user","content":"\\ud83d %b"}]}' % LONG,
    "NaN": b'{"model":"m","stream":true,"temperature":NaN,"prompt":"%b"}' % LONG,
    "infinity": b'{"model":"m","stream":true,"temperature":-Infinity,"prompt":"%b"}' % LONG,
    "a byte order mark": b'\xef\xbb\xbf{"model":"m","stream":true,"messages":[{"role":"user","content":"%b"}]}' % LONG,
}
lenient = pytest.mark.parametrize("body", LENIENT.values(), ids=LENIENT)


class AsEnginesDo(pydantic.BaseModel):
    model: str | None = None


# The model


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"mod\\u0065l":"a","model":"b"}',
        b'{"model":"a","model":null}',
        b'{"model":null,"\\u006dodel":"\\u0062"}',
        b'{"Model":"a","MODEL":"a","model ":"a"}',
        b'{"x":{"model":"a"},"y":"\\"model\\":\\"a\\"","model":"b","z":[{"model":"a"}]}',
        b'{"model":"a","x":NaN,"model":"b"}',
        b'\xef\xbb\xbf{"model":"a","model":"b"}',
    ],
)
def test_the_model_is_the_one_that_the_engine_reads(body: bytes) -> None:
    model = read_body(body).model
    assert model == json.loads(body).get("model")
    if b"NaN" not in body and body[:1] == b"{":
        assert model == AsEnginesDo.model_validate_json(body).model


@pytest.mark.parametrize(
    "model",
    [b'""', b"5", b"[]", b"{}", b"true", b'"%b"' % (b"m" * 513), b'"\xff"', b"[%b0]" % (b"0," * 9000)],
)
def test_a_model_that_is_no_name_is_refused(model: bytes) -> None:
    with pytest.raises(BadRequestError, match="`model` must be a name of 1 to 512 characters, found") as refused:
        read_body(b'{"model":%b}' % model)
    assert refused.value.param == "model"
    assert len(json.dumps(refused.value.body())) < 300


@pytest.mark.parametrize("model", ["m" * 512, "ü" * 512, "😀" * 512])
def test_a_long_name_is_a_name(model: str) -> None:
    assert read_body(json.dumps({"model": model}).encode()).model == model


def test_a_body_may_leave_the_model_out() -> None:
    assert read_body(b"{}").model is read_body(b'{"model":null}').model is None


# What is no JSON


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"model":"m"', b"\xff", b'{"model":"m"} {}', b"{'model':'m'}", b'{"model":"m\n"}', b"\xef\xbb\xbf",
     b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}", b'{"a":NaN,"b":' + b"[" * 3000 + b"]" * 3000 + b"}",
     b'{"a":NaN,}', b'{"model":"\\ud800"}', '{"model":"m"}'.encode("utf-16"), '{"model":"m"}'.encode("utf-32-le"),
     b'{"a":NAN}', b'{"a":"\\ud8"}', b'\xef\xbb\xbf\xef\xbb\xbf{}'],
)  # fmt: skip
def test_what_no_engine_reads_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError, match="not valid JSON") as refused:
        read_body(body)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("name", ["NaN", "a-NaN", "Infinity", "7e7", "\\ud83d\\ude00", "77777e77"])
def test_a_model_that_may_have_been_changed_by_lenient_reading_is_refused(name: str) -> None:
    assert read_body(b'{"model":"%b"}' % name.encode()).model == json.loads(f'"{name}"')
    with pytest.raises(BadRequestError, match="not certain"):
        read_body(b'{"model":"%b","x":NaN}' % name.encode())
    assert read_body(b'{"model":"m","x":["%b",NaN]}' % name.encode()).model == "m"


def test_a_refusal_holds_nothing_of_the_body() -> None:
    for body in (b'{"a":"' + b"\\ud800" * 9000 + b'"', b"[" + b" " * 99 + b"]", b'{"model":5}'):
        held = sys.getrefcount(body)
        with pytest.raises(BadRequestError):
            read_body(body)
        assert sys.getrefcount(body) == held


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"5", b"[" * 500 + b"]" * 500])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError, match="must be a JSON object"):
        read_body(body)


@lenient
async def test_what_python_reads_reaches_the_engine_which_judges(body: bytes) -> None:
    async with upstream() as engine, gateway(engine, policy="prefix") as router:
        answer = await router.post(body)
        assert answer.status_code == 200
        assert answer.headers["x-headwater-decision"] == "fallback"
        asked = b'"stream_options":{"include_usage":true},'
        assert engine.exchanges[0].body.replace(asked, b"") == body


@pytest.mark.parametrize("depth", [10, 900, 960, 1000, 5000])
async def test_a_deep_body_is_forwarded_or_refused_in_words(depth: int) -> None:
    body = b'{"model":"m","messages":' + b"[" * depth + b"]" * depth + b"}"
    async with upstream() as engine, gateway(engine, policy="prefix") as router:
        answer = await router.post(body)
        if answer.status_code == 200:
            assert engine.exchanges[0].body == body
        else:
            assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")


async def test_fields_of_another_type_are_the_engines_business() -> None:
    body = b'{"model":"m","messages":5,"tools":"t","cache_salt":[],"stream_options":7,"prompt":{}}'
    async with upstream() as engine, gateway(engine, policy="prefix") as router:
        for path in (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings"):
            assert (await router.post(body, path)).status_code == 200
        assert [each.body for each in engine.exchanges] == [body] * 4


# Another model in its place


def renamed(body: bytes, name: str = "new/näme") -> bytes:
    return with_model(body, read_body(body), name)


@pytest.mark.parametrize("body", [b"{}", b" { } ", b"{" + b" " * 99 + b"}", b'{ "a" : 1.50 }', b'{"a":[{}]}\n',
                                  b'{"a":NaN}', b'\xef\xbb\xbf{"a":1}', b'\xef\xbb\xbf {} '])  # fmt: skip
def test_a_missing_model_is_put_in_and_nothing_else_changes(body: bytes) -> None:
    pairs = json.loads(renamed(body), object_pairs_hook=list)
    assert pairs[0] == ("model", "new/näme")
    assert repr(pairs[1:]) == repr(json.loads(body, object_pairs_hook=list))
    start, end = body.index(b"{") + 1, len(body)
    assert renamed(body).startswith(body[:start])
    assert renamed(body).endswith(body[start:end])


OTHERS = b'"prompt":"\\u00e9 \xc3\xa9 \\"model\\":\\"m\\"","x":{"model": "n"},"y":[1e2, 1.0,0.10]'


@pytest.mark.parametrize(
    "body",
    [b'{"model":"m",%b}', b'{%b, "model" : "m" }', b'{"model":null,%b}', b'{"model":"m",%b,"z":"\\ud800"}',
     b'\xef\xbb\xbf{"model":"m",%b}', b'{"model":"m",%b' + b',"a":1' * 20_000 + b"}"],
)  # fmt: skip
def test_a_renamed_model_is_there_once_and_other_values_keep_their_bytes(body: bytes) -> None:
    result = renamed(body % OTHERS)
    assert OTHERS in result
    pairs = json.loads(result, object_pairs_hook=list)
    assert [value for name, value in pairs if name == "model"] == ["new/näme"]


@pytest.mark.parametrize(
    "body",
    [b'{"mod\\u0065l":"m"}', b'{"model":"m","x":{"model":"m"}}', b'{"mod\\u0065l":"m","x":{"model":"m"}}',
     b'{"x":{"model":"m"},"model":"m"}', b'{"model":"a","model":"m"}', b'{"model":"m","model":"m"}',
     b'{"model":"m","x":[%b]}' % b",".join([b'{"model":"m"}'] * 99)],
)  # fmt: skip
def test_where_it_is_not_certain_which_one_it_is_another_model_counts(body: bytes) -> None:
    before, after = json.loads(body), json.loads(renamed(body))
    assert after == before | {"model": "new/näme"}
    assert read_body(renamed(body)).model == "new/näme"


def test_no_text_that_looks_like_the_model_is_taken_for_it() -> None:
    for text in ('"model":"m"', 'x","model":"m"', '\\","model":"m"', '\\"model":"m"', '{"model":"m"}'):
        body = json.dumps({"text": text, "model": "m", text: 1}).encode()
        assert json.loads(renamed(body)) == json.loads(body) | {"model": "new/näme"}


NAMES = st.sampled_from(["model", "stream_options", "cache_salt", "x", '"model":"m"', "\\"])
VALUES = st.recursive(
    st.sampled_from(["m", '"model":"m"', None, 1, "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(before=st.dictionaries(NAMES, VALUES, max_size=4), after=st.dictionaries(NAMES, VALUES, max_size=4))
def test_whatever_else_is_in_a_body_only_the_member_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    whole = before | after | {"model": "m"}
    body = json.dumps(whole).encode()
    assert json.loads(renamed(body)) == whole | {"model": "new/näme"}
    assert json.loads(with_cache_salt(body, read_body(body), "ours")) == whole | {"cache_salt": "ours"}


# Asking for the usage


def asking(body: bytes) -> Any:
    result = asking_for_usage(body, read_body(body))
    return None if result is None else json.loads(result, object_pairs_hook=list)


@pytest.mark.parametrize("body", [BODY, b"{}", b'{"stream":false}', b'{"stream":null}', b'{"stream":"off"}'])
def test_only_streams_are_asked_for_their_usage(body: bytes) -> None:
    assert asking(body) is None


@pytest.mark.parametrize(
    "body", [b'{"stream":true}', b' {\n"model":"m", "x":[1e2], "stream" : true}\n', *LENIENT.values()]
)
def test_a_stream_is_asked_in_front_of_the_clients_own_bytes(body: bytes) -> None:
    result = asking_for_usage(body, read_body(body))
    assert result is not None
    start = body.index(b"{") + 1
    assert result == body[:start] + b'"stream_options":{"include_usage":true},' + body[start:]
    assert json.loads(result)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (b"null", [("include_usage", True)]),
        (b"{}", [("include_usage", True)]),
        (b'{ "include_usage" : false }', [("include_usage", True)]),
        (b'{"x":[1e2],"include_usage":null}', [("x", [100.0]), ("include_usage", True)]),
        (b'{"include_usage":"no"}', [("include_usage", True)]),
        (b"5", [("include_usage", True)]),
        (b"[]", [("include_usage", True)]),
        (b'"x"', [("include_usage", True)]),
    ],
)
def test_options_that_do_not_ask_are_replaced_by_some_that_do(options: bytes, asked: list[Any]) -> None:
    for body in (
        b'{"stream":true,"stream_options":%b,"prompt":"x"}',
        b'{"stream":true,"prompt":"x", "stream_options": %b}',
    ):
        pairs = asking(body % options)
        assert [value for name, value in pairs if name == "stream_options"] == [asked]
        assert sorted(name for name, _ in pairs) == ["prompt", "stream", "stream_options"]


@pytest.mark.parametrize(
    "options",
    [b'{"include_usage":true}', b'{"include_usage":1}', b'{"include_usage":"Yes"}',
     b'{"include_usage":false,"include_usage":true,"x":1}'],
)  # fmt: skip
def test_options_that_ask_stay(options: bytes) -> None:
    assert asking(b'{"stream":true,"stream_options":%b}' % options) is None


@pytest.mark.parametrize(
    "members",
    [b'"stream_options":null,"x":"\\ud800"', b'"x":NaN,"stream_options":{"include_usage":false}',
     b'"stream_options":{"x":NaN}', b'"stream_options":{"\\ud800":1}',
     b'"stream_options":null,' + b'"a":1,' * 20_000 + b'"a":1',
     b'"stream_options":{"include_usage":true},"stream_options":null',
     b'"stream_options":{"include_usage":true,"includ\\u0065_usage":false}',
     b'"stream_options":{"x":"%b"}' % (b"x" * 5000), b'"stream_opti\\u006fns":[],"x":{"stream_options":[]}'],
)  # fmt: skip
def test_whatever_is_in_a_streams_body_it_asks_for_the_usage_in_the_end(members: bytes) -> None:
    body = b'{"stream":true,%b}' % members
    result = asking_for_usage(body, read_body(body))
    assert result is not None
    assert json.loads(result)["stream_options"] == {"include_usage": True}
    assert read_body(result).stream


def test_the_last_of_several_options_counts() -> None:
    assert asking(b'{"stream":true,"stream_options":null,"stream_options":{"include_usage":true}}') is None


class Streamed(pydantic.BaseModel):
    stream: bool | None = None


FLAGS = [b"true", b"false", b"null", b"1", b"0", b"1.0", b"0.0", b"1e0", b"-0", b"2", b"-1", b'"true"', b'"TRUE"',
         b'"t"', b'"Yes"', b'"y"', b'"on"', b'"1"', b'"\\u0074rue"', b'"false"', b'"f"', b'"no"', b'"n"', b'"OFF"',
         b'"0"', b'""', b'" true"', b'"1.0"', b"[]", b"[true]", b"{}", b'"stream"']  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("rest", [b"", b',"x":NaN'], ids=["JSON", "no JSON by the book"])
def test_a_stream_is_what_engines_take_for_one_and_no_other_value_is_passed_on(flag: bytes, rest: bytes) -> None:
    body = b'{"stream":%b%b}' % (flag, rest)
    try:
        expected = Streamed.model_validate(json.loads(body))
    except pydantic.ValidationError:
        with pytest.raises(BadRequestError, match="`stream` must be true or false") as refused:
            read_body(body)
        assert refused.value.param == "stream"
    else:
        assert read_body(body).stream is bool(expected.stream)
        assert (asking_for_usage(body, read_body(body)) is not None) is bool(expected.stream)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","cache_salt":"theirs","messages":[]}',
        b'{"model":"m","messages":[]} ',
        b'{"model":"m","cache_salt":"theirs","top_p":NaN,"cache_salt":"again"}',
        b'{"model":"m","cache_salt":null,"x":"' + b"y" * 100_000 + b'"}',
        b'{"cache_salt":"theirs","model":"m","more":[' + b"1," * 50_000 + b"1]}",
    ],
    ids=["one of its own", "none", "two, in a body that is no JSON by the book", "null", "one in a large body"],
)
def test_a_keys_own_salt_is_the_one_that_counts(body: bytes) -> None:
    salted = with_cache_salt(body, read_body(body), "ours")
    assert json.loads(salted)["cache_salt"] == "ours"
    assert json.loads(salted).keys() == json.loads(body).keys() | {"cache_salt"}
    assert read_body(salted).salt in ("ours", None)
