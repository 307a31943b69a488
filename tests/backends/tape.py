"""What a server answered, to be answered again without it: a line for each request that the router sent."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import httpx

from tests.router.upstream import Exchange, Upstream

FIXTURES = Path(__file__).parents[1] / "fixtures" / "contract"


class Tape:
    def __init__(self, backend: str, version: str, date: str, source: str = "") -> None:
        """`source`: what it was written from, where it was not recorded."""
        self.backend = backend
        self.source = source
        self.version = version
        self.date = date
        """When it was recorded."""
        self.unanswered = 0
        """Requests that no answer came to while it was recorded."""
        self._answers: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
        """Status, content type and body of each, by path and the body of the request."""
        self._played: Counter[tuple[str, str]] = Counter()

    def record(self, path: str, body: bytes, status: int, kind: str, answer: bytes) -> None:
        self._answers.setdefault((path, body.decode()), []).append((status, kind, answer.decode()))

    def found(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        """The next answer to it. Raises LookupError for a request that was not sent, or not so often."""
        key = path, body.decode()
        status, kind, answer = self._answers[key][self._played[key]]
        self._played[key] += 1
        return status, kind, answer.encode()

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"backend": self.backend, "version": self.version, "date": self.date}
        lines = [head | ({"source": self.source} if self.source else {})]
        lines += [
            {"path": where, "body": body, "status": status, "type": kind, "answer": answer}
            for (where, body), answers in self._answers.items()
            for status, kind, answer in answers
        ]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    @classmethod
    def read(cls, path: Path) -> "Tape":
        # Not splitlines, which also ends lines within JSON's strings.
        head, *lines = map(json.loads, filter(None, path.read_text().split("\n")))
        tape = cls(**head)
        for each in lines:
            tape.record(each["path"], each["body"].encode(), each["status"], each["type"], each["answer"].encode())
        return tape


def play(tape: Tape, engine: Upstream) -> None:
    """Have the engine answer as the server did."""

    async def answer(exchange: Exchange) -> None:
        status, kind, body = tape.found(_path(exchange), exchange.body)
        await exchange.whole(body, status, b"content-type: %b\r\n" % kind.encode())

    engine.answer = answer


def tap(tape: Tape, engine: Upstream, url: str, http: httpx.AsyncClient) -> None:
    """Have the engine ask the server at `url`, and write down what it answers; nothing at all is a 504."""

    async def answer(exchange: Exchange) -> None:
        path = _path(exchange)
        try:
            got = await http.post(url + path, content=exchange.body, headers={"content-type": "application/json"})
        except httpx.ReadTimeout:
            tape.unanswered += 1
            got = httpx.Response(504, json={"error": "no answer, as long as was waited for it"})
        kind = got.headers.get("content-type", "")
        tape.record(path, exchange.body, got.status_code, kind, got.content)
        await exchange.whole(got.content, got.status_code, b"content-type: %b\r\n" % kind.encode())

    engine.answer = answer


def tapes() -> Iterable[Path]:
    return sorted(FIXTURES.glob("*.jsonl"))


def _path(exchange: Exchange) -> str:
    return exchange.line.split(b" ")[1].decode()
