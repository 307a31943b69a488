"""What real servers answered stands in for them: each answer, through the router, is one that clients understand.

Two kinds of recordings: the contract of `make test-backends`, of which the table in docs/backends.md is made; and
answers of SGLang and TGI to requests in their own words, many of which they refuse.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater import backends
from tests.backends.answers import Answer, read
from tests.backends.contract import ask_all, summary
from tests.backends.requests import MODEL
from tests.backends.table import BEGIN, DOCS, END, known, table
from tests.backends.tape import Tape, play, tapes
from tests.router.gateway import RunningGateway, gateway
from tests.router.upstream import Upstream, upstream

FIXTURES = Path(__file__).parents[1] / "fixtures"
_API = ("/v1/chat/completions", "/v1/completions")


@pytest.mark.parametrize("path", tapes(), ids=lambda path: path.stem)
async def test_what_was_recorded_is_answered_as_it_was_seen(path: Path) -> None:
    tape = Tape.read(path)
    async with upstream(MODEL) as engine, gateway(engine, backend=tape.backend) as router:
        _computes_nothing(engine)
        play(tape, engine)
        seen = summary(await ask_all(router))
    column = known()[tape.backend]
    assert (column.version, column.date, column.source) == (tape.version, tape.date, tape.source)
    assert seen == {kind: column.rows[kind] for kind in seen}
    assert not [told for told in seen.values() if "broken" in told]


def test_the_table_is_what_was_seen_of_each_server() -> None:
    written = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == table(known())
    assert {f"| `{name}` " in written for name in backends.names()} == {True}


def exchanges(folder: str) -> Iterator[tuple[str, str, bytes, int, str, bytes]]:
    """Name, path, request; status, type and body of the answer; of those with a whole answer in OpenAI's API."""
    for file in sorted((FIXTURES / folder).glob("*.txt")):
        head, _, answer = file.read_text().partition("\n< ")
        asked = [line[2:] for line in head.split("\n") if line.startswith("> ")]
        if len(asked) < 2 or asked[0].removeprefix("POST ") not in _API or "more events" in answer:
            continue
        try:
            json.loads(asked[1])
        except ValueError:
            continue  # It is not all there.
        status, _, rest = answer.replace("\n< ", "\n").partition("\n")
        headers, _, body = rest.partition("\n\n")
        kind = next((line[14:] for line in headers.split("\n") if line.lower().startswith("content-type: ")), "")
        yield file.stem, asked[0][5:], asked[1].encode(), int(status.split()[0]), kind, body.strip().encode() + b"\n\n"


CASES = [
    pytest.param(name, *exchange, id=f"{name}-{exchange[0]}")
    for name, folder in (("sglang", "sglang-0.5.23"), ("tgi", "tgi-3.3.7"))
    for exchange in exchanges(folder)
]


@pytest.mark.parametrize(("backend", "what", "path", "asked", "status", "kind", "body"), CASES)
async def test_a_recorded_answer_is_one_that_clients_understand(
    backend: str, what: str, path: str, asked: bytes, status: int, kind: str, body: bytes
) -> None:
    request: dict[str, Any] = json.loads(asked)
    model = request.get("model") or MODEL
    async with upstream(model) as engine, gateway(engine, backend=backend) as router:
        _computes_nothing(engine)
        engine.answer = lambda exchange: exchange.whole(body, status, b"content-type: %b\r\n" % kind.encode())
        answer = await _ask(router, path, asked, streamed=bool(request.get("stream")))
    assert answer.refused == (status != 200 or b'"error":{' in body or not engine.exchanges)
    if not engine.exchanges:
        assert "server of this model" in answer.message, "only what it cannot do is not sent to it"


async def _ask(router: RunningGateway, path: str, body: bytes, *, streamed: bool) -> Answer:
    got = await router.post(body, path, content_type="application/json")
    return read(got.status_code, got.headers.get("content-type", ""), got.content, streamed=streamed)


def _computes_nothing(engine: Upstream) -> None:
    engine.pages[b"/model_info"] = engine.pages[b"/info"] = (200, b"{}")


def test_there_is_something_recorded() -> None:
    assert len(CASES) > 60
    assert {path.stem for path in tapes()} == known().keys()
