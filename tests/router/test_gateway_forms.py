"""Forms: the model that a key is checked for is the one that an engine reads, whichever way it reads forms."""

import email.parser
import email.policy
import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.openai.errors import BadRequestError
from headwater_router.gateway.form_body import FormBody, read_form
from headwater_router.gateway.head import RequestHead
from tests.router.gateway import error_of, gateway
from tests.router.upstream import upstream

KEY = "sk-0123456789abcdef"
PATH = "/v1/audio/transcriptions"
NAMED = b'Content-Disposition: form-data; name="model"'
FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'
END = b"--B--\r\n"


def part(head: bytes, value: bytes) -> bytes:
    return b"--B\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def read(body: bytes, kind: bytes = b"multipart/form-data; boundary=B") -> FormBody:
    return read_form([(b"content-type", kind)], body)


MOCK = part(NAMED, b"m")
AMBIGUOUS = {
    "two": MOCK + part(NAMED, b"secret") + END,
    "the same one twice": MOCK + MOCK + END,
    "one without quotes": MOCK + part(b"Content-Disposition: form-data; name=model", b"secret") + END,
    "a name in capitals": MOCK + part(b'Content-Disposition: form-data; NAME="model"', b"secret") + END,
    "a header in capitals": MOCK + part(b'CONTENT-DISPOSITION: FORM-DATA; name="model"', b"secret") + END,
    "another parameter": MOCK + part(NAMED + b"; x=y", b"secret") + END,
    "a parameter in front": MOCK + part(b'Content-Disposition: form-data; x=y; name="model"', b"secret") + END,
    "spaces behind": MOCK + part(NAMED + b" ", b"secret") + END,
    "no spaces": MOCK + part(b'Content-Disposition:form-data;name="model"', b"secret") + END,
    "an escape": MOCK + part(b'Content-Disposition: form-data; name="mo\\del"', b"secret") + END,
    "a percent sign": MOCK + part(b'Content-Disposition: form-data; name="mo%64el"', b"secret") + END,
    "an extended name": MOCK + part(b"Content-Disposition: form-data; name*=utf-8''model", b"secret") + END,
    "a continued name": MOCK + part(b'Content-Disposition: form-data; name*0="mo"; name*1="del"', b"secret") + END,
    "a name in two lines": MOCK + part(b'Content-Disposition: form-data;\r\n name="model"', b"secret") + END,
    "two names": MOCK + part(b'Content-Disposition: form-data; name="x"; name="model"', b"secret") + END,
    "two dispositions": MOCK + part(b'Content-Disposition: form-data; name="x"\r\n' + NAMED, b"secret") + END,
    "a quote in a file's name": part(b'Content-Disposition: form-data; filename="\\"; name="model"', b"secret") + END,
    "no disposition": MOCK + part(b"Content-Type: text/plain", b"secret") + END,
    "no name": MOCK + part(b"Content-Disposition: form-data", b"secret") + END,
    "no form-data": MOCK + part(b'Content-Disposition: attachment; name="model"', b"secret") + END,
    "no colon": MOCK + part(b"x\r\n" + NAMED, b"secret") + END,
    "half a line's end": MOCK + part(b"x: y\n" + NAMED, b"secret") + END,
    "a zero": MOCK + part(b"x: \0\r\n" + NAMED, b"secret") + END,
    "a long header": MOCK + part(NAMED + b"\r\nx: " + b"a" * 5000, b"secret") + END,
    "many headers": MOCK + part(b"x: a\r\n" * 8 + NAMED, b"secret") + END,
    "a file": MOCK + part(NAMED + b'; filename="x"', b"secret") + END,
    "only a file": part(NAMED + b'; filename="x"', b"m") + END,
    "base64": part(NAMED + b"\r\nContent-Transfer-Encoding: base64", b"bQ==") + END,
    "no head": MOCK + b"--B\r\n\r\nsecret\r\n" + END,
    "a boundary right behind a head": b"--B\r\n" + FILE + b"\r\n\r\n" + part(NAMED, b"secret") + END,
    "a boundary in a head": b"--B\r\n" + FILE + b"\r\n" + part(NAMED, b"secret") + END,
    "a boundary in a file, behind half a line's end": part(FILE, b"x\n" + part(NAMED, b"secret")) + MOCK + END,
    "a boundary in a file": part(FILE, b"x--B\r\n" + NAMED + b"\r\n\r\nsecret") + MOCK + END,
    "a boundary with spaces behind": MOCK + part(NAMED, b"secret").replace(b"--B\r", b"--B \r") + END,
    "a boundary that goes on": MOCK + part(NAMED, b"secret").replace(b"--B\r", b"--BB\r") + END,
    "something in front": b"x\r\n" + MOCK + END,
    "a blank line in front": b"\r\n" + MOCK + END,
    "something behind": MOCK + END + part(NAMED, b"secret") + END,
    "no end": MOCK,
    "half an end": MOCK + b"--B-",
    "no part": END,
    "nothing": b"",
    "JSON": b'{"model":"m"}',
    "many parts": part(b'Content-Disposition: form-data; name="x"', b"") * 200 + MOCK + END,
}


@pytest.mark.parametrize("body", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_a_form_that_could_name_two_models_reaches_no_engine(body: bytes, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps({"keys": [{"name": "one", "key": KEY, "models": ["m"]}]}))
    async with upstream("m", "secret") as engine, gateway(engine, api_keys=file) as router:
        headers = {"x_api_key": KEY, "content_type": "multipart/form-data; boundary=B"}
        answer = await router.post(body, PATH, **headers)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_form")
        assert not engine.exchanges
        refused = await router.post(part(NAMED, b"secret") + END, PATH, **headers)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "model_not_allowed")
        assert (await router.post(MOCK + END, PATH, **headers)).status_code == 200
        assert [exchange.body for exchange in engine.exchanges] == [MOCK + END]


@pytest.mark.parametrize(
    "kind",
    [b"", b"application/json", b"multipart/form-data", b"multipart/form-data; boundary=",
     b"multipart/mixed; boundary=B",
     b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=B; boundary=C",
     b'multipart/form-data; boundary="',
     b"multipart/form-data; boundary=B; charset=utf-7", b"multipart/form-data; charset=utf-16; boundary=B",
     b"multipart/form-data; boundary*=utf-8''B", b"multipart/form-data; boundary=B, multipart/form-data; boundary=C",
     b"multipart/form-data; boundary=" + b"B" * 71, b'multipart/form-data; boundary="\\B"'],
)  # fmt: skip
def test_what_is_not_sent_as_a_form_is_none(kind: bytes) -> None:
    with pytest.raises(BadRequestError, match="content-type must be multipart/form-data"):
        read(MOCK + END, kind)


def test_a_form_of_two_types_or_none_is_refused() -> None:
    one = (b"content-type", b"multipart/form-data; boundary=B")
    for headers in ([], [one, one]):
        with pytest.raises(BadRequestError, match="content-type"):
            read_form(headers, MOCK + END)


@pytest.mark.parametrize("model", [b"", b"m" * 513, b"m\r\n", b"\r\nm", b"\xff", b"m\0", b"m\nn"])
def test_a_models_name_is_one(model: bytes) -> None:
    with pytest.raises(BadRequestError, match="printable") as refused:
        read(part(NAMED, model) + END)
    assert refused.value.param == "model"


# What clients send

DOT_NET = (
    b'--6ff1\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n'
    b'--6ff1\r\nContent-Disposition: form-data; name=file; filename=a.wav; filename*=utf-8\'\'a.wav\r\n\r\nRIFF\r\n'
    b"--6ff1--\r\n"
)  # fmt: skip
CURL = (
    b'--------------------------d74496d66958873e\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--------------------------d74496d66958873e\r\nContent-Disposition: form-data; name="file"; filename="a b.wav"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\nRIFF\r\n--------------------------d74496d66958873e--\r\n"
)
JAVA = (
    b'------=_Part_0_15.9\r\nContent-Disposition: form-data; name="model"\r\nContent-Type: text/plain;charset=UTF-8\r\n'
    b"Content-Transfer-Encoding: 8bit\r\nContent-Length: 1\r\n\r\nm\r\n------=_Part_0_15.9--"
)
SENT: dict[str, tuple[bytes, bytes]] = {
    "curl": (b"multipart/form-data; boundary=------------------------d74496d66958873e", CURL),
    ".NET": (b'multipart/form-data; boundary="6ff1"', DOT_NET),
    "Java": (b"multipart/form-data;charset=UTF-8; boundary=----=_Part_0_15.9", JAVA),
}


@pytest.mark.parametrize(("kind", "body"), SENT.values(), ids=SENT)
def test_forms_of_usual_clients_are_read(kind: bytes, body: bytes) -> None:
    form = read(body, kind)
    assert (form.model, body[form.start : form.end]) == ("m", b"m")


@pytest.mark.parametrize("name", ["m", "grüße/modell", "a b", "😀"])
@pytest.mark.parametrize("filename", ["a.wav", 'quo"ted.wav', "ä.wav", "back\\slash.wav", "semi;colon.wav"])
def test_forms_of_httpx_are_read(name: str, filename: str) -> None:
    request = httpx.Request("POST", "http://x", data={"model": name}, files={"file": (filename, b"RIFF\r\n--")})
    assert read(request.read(), request.headers["content-type"].encode()).model == name


# What goes to the engine


async def test_a_model_that_a_form_leaves_out_is_put_in() -> None:
    body = part(FILE, b"RIFF") + END
    async with upstream() as engine, gateway(engine) as router:
        answer = await router.post(body, PATH, content_type="multipart/form-data; boundary=B")
        assert answer.status_code == 200
        [exchange] = engine.exchanges
        assert exchange.body == MOCK + body
        assert int(exchange.headers[b"content-length"]) == len(exchange.body)


@pytest.mark.parametrize("named", [MOCK, b""], ids=["one of its own", "none"])
async def test_a_server_that_calls_the_model_otherwise_gets_its_own_name_in_a_form(
    named: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with upstream() as engine, gateway(engine) as router:
        of = RequestHead.of
        monkeypatch.setattr(RequestHead, "of", lambda head, endpoint, _, *others: of(head, endpoint, "theirs", *others))
        answer = await router.post(
            named + part(FILE, b"RIFF") + END, PATH, content_type="multipart/form-data; boundary=B"
        )
        assert answer.status_code == 200
        assert engine.exchanges[0].body == part(NAMED, b"theirs") + part(FILE, b"RIFF") + END


VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@given(
    name=VALUES, other=VALUES, file=st.binary(max_size=99).filter(lambda data: b"--B" not in data), first=st.booleans()
)
def test_a_model_is_replaced_and_nothing_else(name: str, other: str, file: bytes, first: bool) -> None:
    parts = [part(NAMED, name.encode()), part(FILE, file)]
    body = b"".join(parts if first else parts[::-1]) + END
    form = read(body)
    assert form.model == name
    assert form.with_model(body, other) == body.replace(part(NAMED, name.encode()), part(NAMED, other.encode()))


# Two readers


def by_delimiters(body: bytes) -> list[bytes]:
    """All that any reader could take for a model: it splits wherever a boundary might be, and looks for the name."""
    found = []
    for piece in re.split(rb"--B", body):
        head, _, value = re.sub(rb"\r?\n", b"\n", piece).partition(b"\n\n")
        if re.search(rb"name\s*\*?\d?\*?\s*=.{0,9}mo", head, re.IGNORECASE | re.DOTALL):
            found.append(value.removesuffix(b"\n"))
    return found


def by_email(body: bytes) -> list[bytes]:
    """As Python's reader of mails, which many frameworks have used for forms."""
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: multipart/form-data; boundary=B\r\n\r\n" + body
    )
    parts = message.get_payload() if message.is_multipart() else []
    found = [each for each in parts if each.get_param("name", header="content-disposition") == "model"]  # type: ignore[union-attr]
    return [each.get_payload(decode=True) for each in found]  # type: ignore[union-attr, misc]


SCRAPS = [b"--B", b"\r\n", b"\r\n\r\n", b"\n", b"--", b"Content-Disposition: form-data; ", b'name="model"',
          b"name=model", b'name="x"', b'; filename="f"', b"; ", b"\\", b'"', b"secret", b"m", b" ", MOCK, END, NAMED,
          part(FILE, b"RIFF"), b"content-disposition", b": "]  # fmt: skip


@given(body=st.lists(st.sampled_from(SCRAPS), max_size=14).map(b"".join))
@pytest.mark.parametrize("reader", [by_delimiters, by_email])
def test_no_reader_finds_another_model_in_a_form_that_is_taken(
    reader: Callable[[bytes], list[bytes]], body: bytes
) -> None:
    for whole in (body, MOCK + body, MOCK + body + END, body + MOCK + END):
        try:
            form = read(whole)
        except BadRequestError:
            continue
        assert reader(whole) == ([] if form.model is None else [form.model.encode()])
