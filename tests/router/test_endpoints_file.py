"""The file of endpoints: read again whenever it changes, and nothing that it can hold stops a router that runs."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from headwater_router.endpoints import discovery
from headwater_router.endpoints.discovery import MOST_BYTES, StaticEndpoints, read_endpoints
from headwater_router.endpoints.endpoint import EndpointError, EndpointSpec
from tests.router.gateway import until

GOOD = b"- url: http://h:1\n- {url: 'http://h:2', name: b, backend: vllm}\n"
BOMB = b"- &a [x, x]\n" + b"".join(b"- &%c [%b]\n" % (98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(20))
WRONG = {
    "a port that there is not": b"- url: http://h:99999",
    "a port that is none": b"- url: http://h:80a",
    "half a bracket": b"- url: http://[::1:8000",
    "not UTF-8": b"- url: http://h\xff",
    "NUL": b"- url: http://h\x00",
    "half a line": b"- {url: 'http://h:",
    "nothing": b"",
    "only a comment": b"# to be filled\n",
    "null": b"null",
    "a map": b"{a: b}",
    "no map in the list": b"- http://h:1",
    "a url that is no text": b"- {url: 7}",
    "no url": b"- {name: n}",
    "an unknown setting": b"- {url: 'http://h:1', x: y}",
    "credentials": b"- url: http://u:p@h",
    "two of one name": b"- {url: 'http://h:1', name: a}\n- {url: 'http://h:2', name: a}",
    "two of one url": b"- {url: 'http://h:80', name: a}\n- {url: 'http://H', name: b}",
    "an alias": b"- &a {url: 'http://h:1'}\n- *a",
    "a bomb": BOMB,
    "a date that there is not": b"- url: 2001-99-99",
    "odd tags": b"- !!int ''",
    "a Python object": b"- !!python/object/apply:os.system [x]",
    "too deep": b"[" * 5000,
    "too large": b"- url: http://h:1\n" + b"#" * MOST_BYTES,
    "two documents": b"- url: http://h:1\n---\n- url: http://h:2",
    "a lone surrogate": b'- url: "http://h\\ud800"',
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_bytes(content)
    with pytest.raises(EndpointError, match=r"endpoints\.yaml") as told:
        StaticEndpoints([], file)
    message = str(told.value)
    message.encode()
    assert len(message) < 600
    assert "\n" not in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (Path("a\x00b"), "no path")):
        with pytest.raises(EndpointError, match=why):
            read_endpoints(path)


def test_an_empty_list_is_a_list_and_json_and_a_mark_of_utf8_are_read(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_bytes(b"[]")
    assert read_endpoints(file) == []
    file.write_bytes(b'\xef\xbb\xbf[{"url": "http://h:1"}]')
    assert read_endpoints(file) == [EndpointSpec("http://h:1", "h:1")]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(EndpointError, match="it is no regular file"):
            read_endpoints(path)


def test_flags_and_file_may_not_name_the_same(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_bytes(GOOD)
    with pytest.raises(EndpointError, match=r"'x' and 'h:1' have one url, http://h:1"):
        StaticEndpoints([EndpointSpec.parse("http://h:1,name=x")], file)
    with pytest.raises(EndpointError, match=r"http://g and http://h:2 have one name, 'b'"):
        StaticEndpoints([EndpointSpec.parse("http://g,name=b")], file)
    twice = [EndpointSpec.parse("http://g,name=a"), EndpointSpec.parse("http://h,name=a")]
    with pytest.raises(EndpointError, match=r"http://g and http://h have one name, 'a'"):
        StaticEndpoints(twice, None)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=4))
ENTRIES = st.lists(
    st.dictionaries(
        st.sampled_from(["url", "name", "backend", "kv_events", "api_key_env", "api_key_file"]),
        VALUES | st.sampled_from(["http://h:1", "https://[::1]", "vllm", "tcp://h:1", "http://h:99999", "HOME"]),
        max_size=4,
    ),
    max_size=3,
)
CONTENTS = (
    st.binary(max_size=200)
    | st.text(alphabet="-[]{}:&*!|>'\"#%@`,? \n\tahtp/0123.<=~", max_size=80).map(str.encode)
    | VALUES.map(lambda value: yaml.dump(value, allow_unicode=True).encode(errors="replace"))
    | ENTRIES.map(lambda value: yaml.dump(value).encode(errors="replace"))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(CONTENTS)
def test_whatever_a_file_holds_it_is_endpoints_or_an_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_bytes(content)
    with contextlib.suppress(EndpointError):
        assert all(isinstance(each, EndpointSpec) for each in read_endpoints(file))


# While the router runs


@asynccontextmanager
async def followed(static: StaticEndpoints) -> AsyncIterator[list[list[str]]]:
    """The names of each set that came."""
    sets: list[list[str]] = []

    async def follow() -> None:
        async for specs in static.changes():
            sets.append([spec.name for spec in specs])

    task = asyncio.create_task(follow())
    try:
        yield sets
        assert not task.done(), "it must go on"
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_LOOK_EVERY", 0.01)


@pytest.mark.usefixtures("looks")
async def test_whatever_becomes_of_the_file_the_last_good_set_stays(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_bytes(GOOD)
    static = StaticEndpoints([], file)
    structlog.reset_defaults()
    with capture_logs() as logged:
        async with followed(static) as sets:
            for number, content in enumerate(WRONG.values()):
                file.write_bytes(content + b"\n#" + b"x" * number)  # so that each differs in size from the one before
                await until(lambda: len(logged) > number)  # noqa: B023
            file.unlink()
            await until(lambda: len(logged) > len(WRONG))
            assert sets == [["h:1", "b"]]
            assert [spec.name for spec in static.specs] == ["h:1", "b"]
            file.write_bytes(b"- url: http://h:3")
            await until(lambda: sets == [["h:1", "b"], ["h:3"]])
            file.write_bytes(b"[]")
            await until(lambda: sets[-1] == [])
    refused = "endpoints file refused; the last good one stays in force"
    assert {(each["event"], each["log_level"]) for each in logged} == {(refused, "error")}


@pytest.mark.usefixtures("looks")
async def test_a_file_that_is_being_written_is_left_alone_until_it_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_bytes(GOOD)
    static = StaticEndpoints([], file)
    sizes = iter([10, 20, 30, 40])
    still = asyncio.Event()

    def stamp() -> tuple[int, int, int] | None:
        size = next(sizes, None)
        if size is None:
            still.set()
        return (1, 1, size or 50)

    monkeypatch.setattr(static, "_stamp", stamp)
    read: list[bool] = []
    monkeypatch.setattr(discovery, "read_endpoints", lambda path: read.append(still.is_set()) or [])
    async with followed(static) as sets:
        await until(lambda: len(sets) == 2)
    assert read == [True]
