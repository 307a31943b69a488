"""Clients of all manners, each of which knows the one answer that is right for it."""

import asyncio
import json
import random
from dataclasses import dataclass, field

from tests.chaos.engines import expected

PATIENCE = 90.0
"""Seconds after which an answer counts as a hang: far above every limit that the router was given."""


@dataclass(slots=True, eq=False)
class Tally:
    """What clients saw."""

    answered: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """By status and code."""
    broken: int = 0
    """Answers that ended early and said so, by an error event or by the end of the connection."""
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    """What must not be: foreign bytes, hangs, answers that are short and do not say so."""

    def refuse(self, why: str) -> None:
        self.refused[why] = self.refused.get(why, 0) + 1

    @property
    def total(self) -> int:
        return self.answered + sum(self.refused.values()) + self.broken + self.left + len(self.wrong)


class Client:
    """One request over a connection of its own."""

    def __init__(self, port: int, number: int, rng: random.Random, tally: Tally) -> None:
        self._port = port
        self._name = f"r{number}"
        self._rng = rng
        self._tally = tally
        self._stream = rng.random() < 0.6
        self._manner = rng.choices(("plain", "leaves", "sends slowly", "reads slowly"), (70, 14, 8, 8))[0]

    async def run(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._run()
        except TimeoutError:
            self._tally.wrong.append(f"{self._name} ({self._manner}): hangs")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            self._tally.wrong.append(f"{self._name} ({self._manner}): {error!r}")

    async def _run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await self._send(writer)
            if self._manner == "leaves":
                await asyncio.sleep(self._rng.uniform(0, 0.15))
                self._tally.left += 1
                return
            await self._receive(reader)
        finally:
            if self._manner == "leaves" and self._rng.random() < 0.5:
                writer.transport.abort()
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        question = f"{self._name} " + "word " * self._rng.randint(1, 400)
        body = json.dumps({"model": "m", "stream": self._stream, "messages": [{"role": "user", "content": question}]})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: chaos\r\ncontent-length: {len(body)}\r\n\r\n"
        data = (head + body).encode()
        if self._manner != "sends slowly":
            writer.write(data)
            return
        for start in range(0, len(data), 400):
            writer.write(data[start : start + 400])
            await asyncio.sleep(0.02)

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(head.split(" ", 2)[1])
        chunked = "transfer-encoding: chunked" in head
        length = None if chunked else int(head.partition("content-length: ")[2].split("\r\n")[0])
        if head.count("content-length:") + head.count("transfer-encoding:") != 1 or "x-request-id: " not in head:
            self._tally.wrong.append(f"{self._name}: a head that is none: {head}")
            return
        body, whole = await self._body(reader, length)
        if status != 200:
            self._check_refusal(status, body, whole)
        elif self._stream:
            self._check_stream(body, whole)
        else:
            self._check_answer(body, whole)

    async def _body(self, reader: asyncio.StreamReader, length: int | None) -> tuple[bytes, bool]:
        """The body, and whether it came to its end."""
        body = b""
        try:
            if length is not None:
                return await reader.readexactly(length), True
            while True:
                size = int(await reader.readuntil(b"\r\n"), 16)
                body += (await reader.readexactly(size + 2))[:-2]
                if self._manner == "reads slowly":
                    await asyncio.sleep(0.03)
                if not size:
                    return body, True
        except (asyncio.IncompleteReadError, ConnectionError):
            return body, False

    def _check_refusal(self, status: int, body: bytes, whole: bool) -> None:
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            if whole:
                self._tally.wrong.append(f"{self._name}: {status} in no known shape: {body[:100]!r}")
            else:
                self._tally.broken += 1
            return
        self._tally.refuse(f"{status} {error.get('code')}")

    def _check_answer(self, body: bytes, whole: bool) -> None:
        if not whole:
            self._tally.broken += 1
            return
        text = json.loads(body)["choices"][0]["message"]["content"]
        if text == "".join(expected(self._name)):
            self._tally.answered += 1
        else:
            self._tally.wrong.append(f"{self._name}: foreign answer {text[:100]}")

    def _check_stream(self, body: bytes, whole: bool) -> None:
        pieces: list[str] = []
        done = error = False
        for line in body.split(b"\n"):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                done = True
                continue
            try:
                event = json.loads(data)
            except ValueError:
                error = True  # Cut within a line; an error event has to follow.
                continue
            error |= "error" in event
            if "usage" in event:
                self._tally.wrong.append(f"{self._name}: usage that it did not ask for")
                return
            pieces += [text for each in event.get("choices", []) if (text := each["delta"].get("content"))]
        right = expected(self._name)
        if pieces != right[: len(pieces)]:
            self._tally.wrong.append(f"{self._name}: foreign pieces {pieces[:5]}")
        elif done and not error and pieces == right:
            self._tally.answered += 1
        elif error or not whole:
            self._tally.broken += 1
        else:
            self._tally.wrong.append(f"{self._name}: ends after {len(pieces)} pieces and does not say so")
