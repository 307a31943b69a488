"""What flags and files may say of an endpoint, and how they are told of what is wrong."""

import os
import random
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater_router.endpoints.address import Address, read_url
from headwater_router.endpoints.breaker import Breaker
from headwater_router.endpoints.endpoint import Endpoint, EndpointError, EndpointSpec
from headwater_router.endpoints.key import ApiKey


def test_a_flag_says_where_an_endpoint_is_and_more() -> None:
    spec = EndpointSpec.parse("http://10.0.0.1:8000/,name=n,backend=vllm,kv_events=tcp://10.0.0.1:5557")
    assert spec == EndpointSpec("http://10.0.0.1:8000", "n", "vllm", "tcp://10.0.0.1:5557")
    assert EndpointSpec.parse("http://h:1").name == "h:1"


@pytest.mark.parametrize(
    ("written", "normal", "address"),
    [
        ("http://Host", "http://host", Address(False, "host", 80)),
        ("http://h:080/", "http://h", Address(False, "h", 80)),
        ("https://h", "https://h", Address(True, "h", 443)),
        ("https://h:8443/a/b//", "https://h:8443/a/b", Address(True, "h", 8443, "/a/b")),
        ("http://[FD00:0::1]:8000", "http://[fd00::1]:8000", Address(False, "fd00::1", 8000)),
        ("http://my_engine-1.ns.svc:1", "http://my_engine-1.ns.svc:1", Address(False, "my_engine-1.ns.svc", 1)),
    ],
)
def test_a_url_is_the_same_however_it_is_written(written: str, normal: str, address: Address) -> None:
    assert read_url(written) == address
    assert EndpointSpec.parse(written).url == normal
    assert read_url(normal) == address


@pytest.mark.parametrize(
    "url",
    ["h:8000", "ftp://h", "http://", "http://:80", "http://h:", "http://h:80a", "http://h:0x50", "http://[::1:8000",
     "http://::1:8000", "http://[::g]", "http://[fe80::1%25eth0]:80", "http://h h", " http://h", "http://h\x00", "http://h\n",
     "http://h:80\r\nx: y", "http://\xff", "http://h?x=y", "http://h#x", "http://h/a b", "http://h/a?b", "http://1.2.3",
     "http://256.1.1.1", "http://0x7f.1", "http://-h", "http://a..b", f"http://{'a' * 64}", f"http://{'a.' * 127}aaa",
     f"http://h/{'a' * 3000}", "http://h:８０", "http://ⓗ"],
)  # fmt: skip
def test_what_is_no_url_of_an_endpoint_is_answered_with_what_is(url: str) -> None:
    with pytest.raises(EndpointError, match=r"url must be http://HOST\[:PORT\]\[/PATH\]"):
        EndpointSpec.of({"url": url})


@pytest.mark.parametrize("port", ["0", "99999", "65536"])
def test_a_port_is_one_of_those_that_there_are(port: str) -> None:
    with pytest.raises(EndpointError, match="port must be 1 to 65535"):
        EndpointSpec.of({"url": f"http://h:{port}"})
    with pytest.raises(EndpointError, match="port must be 1 to 65535"):
        EndpointSpec.of({"url": "http://h", "kv_events": f"tcp://h:{port}"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://h:8000,backend=ollama", "no backend 'ollama'; there are: headwater"),
        ("http://h:8000,colour=red", "unknown setting 'colour'; allowed are url, name"),
        ("http://h:8000,name", "name=value"),
        ("http://h,name=" + "n" * 254, "name must be at most 253 printable"),
        ("http://h,name=a\nb", "name must be at most 253 printable"),
        ("http://h,kv_events=tcp://h", "kv_events must be tcp://HOST:PORT or ipc:///PATH"),
        ("http://h,kv_events=ipc:///run/*", "kv_events must be tcp://HOST:PORT or ipc:///PATH"),
        ("http://h,kv_events=ipc://h:1", "kv_events must be tcp://HOST:PORT or ipc:///PATH"),
        ("http://h,kv_events=tcp://[::1:5", "kv_events must be tcp://HOST:PORT or ipc:///PATH"),
        ("http://h,kv_replay=tcp://h", "kv_replay must be tcp://HOST:PORT or ipc:///PATH"),
        ("http://h,api_key_env=1", "api_key_env must be the name of a variable"),
        ("http://h,api_key_env=A,api_key_file=b", "cannot stand beside"),
        ("http://h,api_key_env=HEADWATER_NO_SUCH_KEY", "api_key_env=HEADWATER_NO_SUCH_KEY: no key can be read there"),
        ("http://h,api_key_file=/no/such", "api_key_file=/no/such: no key can be read there: No such file"),
        ("http://h,api_key_file=/", "no key can be read there: it is no regular file"),
        ("http://h,api_key_file=a\x00b", "api_key_file must be a path"),
    ],
)
def test_a_wrong_setting_is_answered_with_what_is_allowed(text: str, complaint: str) -> None:
    with pytest.raises(EndpointError) as told:
        EndpointSpec.parse(text)
    assert complaint in str(told.value)


SECRET = "s3cret"


@pytest.mark.parametrize(
    "text",
    [f"http://u:{SECRET}@h", f"http://{SECRET}@h:1/x", f"https://u:a,{SECRET}@h,name=n", f"http://u:a,w={SECRET}@h",
     f"http://u:{SECRET} x@h", f"http://u:{SECRET}@h:99999", f"http://h?api_key={SECRET}", f"http://h#{SECRET}"],
)  # fmt: skip
def test_credentials_in_a_url_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(EndpointError) as told:
        EndpointSpec.parse(text)
    assert SECRET not in str(told.value)
    if "@" in text:
        assert "must hold no credentials; api_key_env= or api_key_file=" in str(told.value)


@given(st.text(alphabet=st.sampled_from(string.printable + "\x00é\ud800@[]:/,="), max_size=60))
def test_whatever_a_flag_holds_it_is_an_endpoint_or_an_error_that_can_be_printed(text: str) -> None:
    for written in (text, f"http://{text}", f"http://h:{text}", f"http://h,name={text}"):
        try:
            spec = EndpointSpec.parse(written)
        except EndpointError as error:
            str(error).encode()
            assert len(str(error)) < 600
        else:
            endpoint = Endpoint(spec, Breaker(failures=1, window=1, open_for=1))
            assert 1 <= endpoint.port <= 65535
            assert endpoint.host.isascii()
            assert b"\n" not in endpoint.authority + endpoint.path


@given(
    st.dictionaries(st.sampled_from(["url", "name", "backend", "x"]) | st.integers(), st.none() | st.lists(st.text()))
)
def test_a_setting_that_is_no_text_is_refused(fields: dict[object, object]) -> None:
    with pytest.raises(EndpointError):
        EndpointSpec.of({**fields, "name": random.random()})


# Keys


def test_a_key_of_a_variable_is_shown_to_the_endpoint_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", SECRET)
    spec = EndpointSpec.parse("http://h,api_key_env=ENGINE_KEY")
    endpoint = Endpoint(spec, Breaker(failures=1, window=1, open_for=1))
    endpoint.key.refresh()
    assert endpoint.key.header == b"authorization: Bearer s3cret\r\n"
    assert SECRET not in f"{spec!r}{endpoint!r}{endpoint.key!r}"


def test_a_key_of_a_file_is_read_again_when_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("one\n")
    key = ApiKey("", str(file))
    key.refresh()
    assert key.header == b"authorization: Bearer one\r\n"
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").replace(file)
    key.refresh()
    assert key.header == b"authorization: Bearer two\r\n"
    for wrong in ("", "a b", "a\r\nx-evil: b", "é", "k" * 9000):
        file.write_text(wrong)
        key.refresh()
        assert key.header == b"authorization: Bearer two\r\n", "the last good one"
    file.unlink()
    key.refresh()
    assert key.header == b"authorization: Bearer two\r\n"


def test_a_pipe_in_the_place_of_a_key_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("one")
    key = ApiKey("", str(file))
    key.read()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(EndpointError, match="it is no regular file"):
        key.read()
    key.refresh()
    assert key.header == b"authorization: Bearer one\r\n"


@pytest.mark.parametrize("wrong", ["", " ", "a b", "a\nb", "\x7f", "k" * 9000])
def test_what_is_no_key_is_refused_at_the_start_and_not_repeated(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "key"
    file.write_text(wrong)
    with pytest.raises(EndpointError) as told:
        EndpointSpec.parse(f"http://h,api_key_file={file}")
    assert "api_key_file=" in str(told.value)
    assert "k" * 100 not in str(told.value)
