"""An engine process without an engine: it says what a test tells it to say, and tells the test what it hears."""

import os
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from headwater_engine.core.messages import Abort, Embed, FinishReason, Generate, Output, Outputs, Ready, Reply, Request

EXIT = b"exit "


def main(heard: str, orders: str, requests: str, replies: str) -> int:
    """The process: `heard` and `orders` are the test's sockets, the other two the HTTP process's."""
    context = zmq.Context()
    sockets = {name: context.socket(kind) for name, kind in _SOCKETS.items()}
    for name, endpoint in zip(_SOCKETS, (heard, orders, requests, replies), strict=True):
        sockets[name].connect(endpoint)
    poller = zmq.Poller()
    poller.register(sockets["requests"], zmq.POLLIN)
    poller.register(sockets["orders"], zmq.POLLIN)
    parent = os.getppid()
    while os.getppid() == parent:
        for socket, _ in poller.poll(200):
            message = socket.recv()
            if socket is sockets["requests"]:
                kind = msgspec.msgpack.decode(message)["type"]
                if kind == "tokenizer":
                    continue  # which is long, and comes before anything that a test does
                sockets["heard"].send(message)
                if kind == "shutdown":
                    context.destroy(linger=1000)
                    return 0
            elif message.startswith(EXIT):
                context.destroy(linger=1000)
                return int(message.removeprefix(EXIT))
            else:
                sockets["replies"].send(message)
    return 0


_SOCKETS = {"heard": zmq.PUSH, "orders": zmq.PULL, "requests": zmq.PULL, "replies": zmq.PUSH}


class FakeEngine:
    """The test's side of it."""

    def __init__(self, heard: zmq.asyncio.Socket, orders: zmq.asyncio.Socket, command: list[str]) -> None:
        self._heard = heard
        self._orders = orders
        self._decoder = msgspec.msgpack.Decoder(Request)
        self.command = command

    async def say(self, reply: Reply) -> None:
        await self._orders.send(msgspec.msgpack.encode(reply))

    async def be_ready(self, max_model_len: int = 64, vocab_size: int = 512) -> None:
        await self.say(
            Ready(max_model_len=max_model_len, vocab_size=vocab_size, num_blocks=100, block_size=16, kernels="fake")
        )

    async def answer(self, request: Generate, text: str, finish: FinishReason | None = None, **rest: Any) -> None:
        """One token of random:tiny's tokenizer for each character of `text`, which is printable ASCII."""
        tokens = [sorted_alphabet().index(character) for character in text.replace(" ", "Ġ")]
        await self.say(Outputs([Output(id=request.id, tokens=tokens, finish_reason=finish, **rest)]))

    async def exit(self, status: int) -> None:
        await self._orders.send(EXIT + str(status).encode())

    async def hear(self) -> Request:
        return self._decoder.decode(await self._heard.recv())

    async def hear_question(self) -> Generate:
        message = await self.hear()
        assert isinstance(message, Generate)
        return message

    async def hear_embed(self) -> Embed:
        message = await self.hear()
        assert isinstance(message, Embed)
        return message

    async def give(self, question: Embed, *numbers: float, cached_tokens: int = 0) -> None:
        """Its vector."""
        vector = struct.pack(f"={len(numbers)}f", *numbers)
        output = Output(id=question.id, vector=vector, cached_tokens=cached_tokens, finish_reason=FinishReason.STOP)
        await self.say(Outputs([output]))

    async def hear_abort(self) -> list[str]:
        message = await self.hear()
        assert isinstance(message, Abort)
        return message.ids


def sorted_alphabet() -> list[str]:
    """The first tokens of random:tiny's tokenizer."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


@asynccontextmanager
async def fake_engine(folder: Path) -> AsyncIterator[FakeEngine]:
    """Its process is for others to start, with `command` and two endpoints behind it."""
    context = zmq.asyncio.Context()
    heard, orders = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    endpoints = [f"ipc://{folder}/heard", f"ipc://{folder}/orders"]
    heard.bind(endpoints[0])
    orders.bind(endpoints[1])
    try:
        yield FakeEngine(heard, orders, [sys.executable, __file__, *endpoints])
    finally:
        context.destroy(linger=0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
