"""Streams of engines, by their events."""

import asyncio
import json

from tests.router.upstream import Exchange, Handler

ROLE = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def streaming(*pieces: bytes, end: bool = True) -> Handler:
    """All of these; without `end` the connection breaks behind them."""

    async def answer(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for piece in pieces:
            await exchange.chunk(piece)
            await asyncio.sleep(0)
        if end:
            await exchange.chunk(b"")
        else:
            exchange.connection.transport.close()

    return answer


def last_event(content: bytes) -> dict[str, object]:
    return dict(json.loads(content.rstrip().rpartition(b"data: ")[2])["error"])
