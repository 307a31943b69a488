"""Three of our engines behind our router, vllm-router and smg in turn: what each finds in caches, and what clients see.

    python -m benchmarks.routers_real FOLDER [--peer NAME=COMMAND ...] [--rounds 3]

FOLDER: a small model in Hugging Face's format. All routers stand before the same engines, whose caches hold half of
what is shared each, and get the same two loads in turns with other words in each turn, so that nobody finds what
another left. Chats, sampled and streamed. A peer's COMMAND has `{port}`, `{metrics}` and `{engines}` filled in, as in
router_path.py; without any, `smg` and `vllm-router` are taken from the PATH. Prints Markdown: medians over the
rounds, and all of them. An answer that is not whole, or not 200, ends it.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx

from benchmarks.servers import free_port, free_ports, peer_routers, server
from headwater.cli.load import Answer, Summary, ask, text

MODEL: Final = "bench"
ENGINES: Final = 3
BLOCKS: Final = 240
"""Of 16 tokens, of each engine."""
SAMPLING: Final = {"temperature": 0.7, "max_tokens": 16, "ignore_eos": True}
AT_ONCE: Final = 6

Messages = list[dict[str, str]]
Load = list[list[Messages]]
"""Chains of requests: each is sent when the one before it in its chain has been answered."""


def message(role: str, chance: random.Random, words: int) -> dict[str, str]:
    return {"role": role, "content": text(chance, words)}


def shared_prefixes(chance: random.Random) -> Load:
    """Short questions behind one of twelve long instructions."""
    instructions = [message("system", chance, 600) for _ in range(12)]
    return [[[chance.choice(instructions), message("user", chance, 30)]] for _ in range(96)]


def conversations(chance: random.Random) -> Load:
    """Twelve of six turns each. The model's own answers are put in other words, so that all routers get the same."""
    chains = []
    for _ in range(12):
        messages, chain = [message("system", chance, 250)], []
        for _ in range(6):
            messages.append(message("user", chance, 40))
            chain.append(list(messages))
            messages.append(message("assistant", chance, 16))
        chains.append(chain)
    return chains


LOADS: Final = {"shared prefixes": shared_prefixes, "conversations": conversations}


async def play(port: int, load: Load) -> Summary:
    answers: list[Answer] = []
    waiting = iter(load)

    async def client(http: httpx.AsyncClient) -> None:
        for chain in waiting:
            for messages in chain:
                answer = await ask(http, {"model": MODEL, "messages": messages, **SAMPLING})
                if answer.error or answer.output_tokens != SAMPLING["max_tokens"]:
                    raise SystemExit(f"port {port}: {answer.error or f'{answer.output_tokens} tokens came'}")
                answers.append(answer)

    url = f"http://127.0.0.1:{port}/v1"
    async with httpx.AsyncClient(base_url=url, timeout=600) as http, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client(http))
    return Summary.of(MODEL, AT_ONCE, answers, 1000, 100)


def chats(port: int) -> bool:
    """Whether one gets an answer there."""
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    try:
        return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60).status_code == 200
    except httpx.HTTPError:
        return False


def started(running: ExitStack, folder: Path, peers: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Each router and its port, with the engines behind it."""
    engines = free_ports(ENGINES)
    events = dict(zip(engines, free_ports(ENGINES), strict=True))
    for engine in engines:
        command = (
            f"{sys.executable} -m headwater serve {folder} --served-model-name {MODEL} --port {engine} --threads 1"
        )
        flags = f"--num-blocks {BLOCKS} --max-model-len 2048 --kv-events tcp://127.0.0.1:{events[engine]}"
        running.enter_context(server(f"{command} {flags}", partial(chats, engine)))
    endpoints = " ".join(
        f"--endpoint http://127.0.0.1:{engine},backend=headwater,kv_events=tcp://127.0.0.1:{events[engine]}"
        for engine in engines
    )
    ours = f"{sys.executable} -m headwater route --port {{port}} --tokenizer {MODEL}={folder} {endpoints}"
    commands = {"headwater": ours, **peers}
    urls = " ".join(f"http://127.0.0.1:{engine}" for engine in engines)
    for name, command in commands.items():
        port = free_port()
        filled = command.format(port=port, engines=urls, metrics=free_port())
        running.enter_context(server(filled, partial(chats, port), 120))
        yield name, port


MEASURES: Final = {
    "cached share, %": lambda each: 100 * each.cached_share,
    "TTFT p50, ms": lambda each: each.ttft_p50,
    "TTFT p99, ms": lambda each: each.ttft_p99,
    "output tokens/s": lambda each: each.output_tokens_per_s,
}


def tell(rounds: dict[tuple[str, str], list[Summary]], routers: list[str]) -> None:
    print(f"| load | | {' | '.join(routers)} |\n|---|---" + "|---" * len(routers) + "|")
    for load in LOADS:
        for measure, value in MEASURES.items():
            cells = []
            for router in routers:
                values = [value(each) for each in rounds[load, router]]
                cells.append(f"{median(values):.0f} ({', '.join(f'{each:.0f}' for each in values)})")
            print(f"| {load} | {measure} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="repeat it for several")
    parser.add_argument("--rounds", type=int, default=3, help="alternations")
    options = parser.parse_args()
    peers = peer_routers(options.peer)
    rounds: dict[tuple[str, str], list[Summary]] = {}
    with ExitStack() as running:
        routers = list(started(running, options.folder, peers))
        for turn in range(options.rounds):
            for name, load in LOADS.items():
                order = routers[turn % len(routers) :] + routers[: turn % len(routers)]
                for router, port in order:
                    chance = random.Random(f"{turn} {name} {router}")
                    summary = asyncio.run(play(port, load(chance)))
                    rounds.setdefault((name, router), []).append(summary)
                    print(f"round {turn + 1}, {name}, {router}: {summary}", file=sys.stderr, flush=True)
    tell(rounds, [name for name, _ in routers])


if __name__ == "__main__":
    main()
