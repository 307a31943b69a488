"""What it costs the router to know long prompts token by token: CPU seconds and memory, in parts, on one core.

The shape is the one that llm-d publishes figures for: prompts of 100,000 tokens, of which a part is new, at 100
requests a second over 100 endpoints that publish KV events. Each part is run at a small share of that rate and counted
in CPU seconds of the process, all its threads; cores are CPU seconds a request times the requests a second.

    python -m benchmarks.exact_cost FOLDER     # of a tokenizer with its chat template
"""

import argparse
import asyncio
import json
import os
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from headwater.events import BlockStored, EventBatch, encode, to_frames
from headwater_router.gateway.body import read_body
from headwater_router.index import PrefixIndex, PromptBuilder
from headwater_router.index.feed import Feed
from headwater_router.index.tokenizer import ModelTokenizer
from headwater_router.index.tokenizers import Tokenizers
from headwater_router.picker import make
from headwater_router.picker.base import Prompt, Target
from headwater_router.picker.targets import Targets

PATH = "/v1/chat/completions"
ENDPOINTS = 100
RATE = 100
"""Requests a second that the figures are for."""
WORDS = ("river", "gauge", "level", "noon", "water", "bridge", "lock", "mill", "stream", "valley", "upper", "lower")


def cpu() -> float:
    times = os.times()
    return times.user + times.system


def text(rng: random.Random, tokens: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(tokens))


class Conversation:
    """A long document, then turns about it."""

    def __init__(self, seed: int, tokens: int) -> None:
        self._rng = random.Random(seed)
        self.messages = [{"role": "user", "content": text(self._rng, tokens)}]

    def turn(self, tokens: int) -> bytes:
        self.messages.append({"role": "assistant", "content": text(self._rng, tokens // 2)})
        self.messages.append({"role": "user", "content": text(self._rng, tokens // 2)})
        return json.dumps({"model": "m", "stream": True, "messages": self.messages}).encode()


class Cost:
    """Prints a line for each part."""

    def __init__(self) -> None:
        self.cores = 0.0

    def part(self, name: str, times: int, work: Callable[[], object]) -> None:
        before = cpu()
        work()
        each = (cpu() - before) / times
        self.cores += each * RATE
        print(f"{name:52} {1000 * each:9.2f} ms a request {each * RATE:7.2f} cores at {RATE}/s")


async def prompts(builder: PromptBuilder, bodies: list[bytes]) -> list[Prompt]:
    made = []
    for data in bodies:
        body = read_body(data)
        prompt = builder.build(PATH, body, [], model="m")
        if (exact := builder.exact(prompt, PATH, body)) is not None:
            await exact
        made.append(prompt)
    return made


def prompt_ids(seed: int, tokens: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(150_000) for _ in range(tokens)]


def event(ids: list[int], block: int) -> bytes:
    names = [hash((tuple(ids[:9]), block, number)) for number in range(len(ids) // block)]
    stored = BlockStored(names, None, ids[: len(names) * block], block, None, "GPU", None)
    return encode(EventBatch(0.0, [stored]))


def take(feeds: list[Feed], sequences: list[int], messages: list[bytes]) -> None:
    for place, payload in enumerate(messages):
        for _ in feeds[place].take(to_frames(b"", sequences[place], payload)):
            pass
        sequences[place] += 1


def memory() -> int:
    """KiB, at their most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=2_000, help="tokens that a turn adds")
    parser.add_argument("--requests", type=int, default=20)
    options = parser.parse_args()
    tokenizer = ModelTokenizer.from_folder(options.folder)
    builder = PromptBuilder(tokenizers=Tokenizers({"m": tokenizer}))
    count, cost = options.requests, Cost()
    conversations = [Conversation(seed, options.tokens) for seed in range(count)]
    first = [each.turn(options.new) for each in conversations]
    second = [each.turn(options.new) for each in conversations]
    warm: list[Prompt] = []
    cost.part("read, hash the text", count, lambda: asyncio.run(prompts(PromptBuilder(), second)))
    name = "a first turn: render, tokenize all, hash the ids"
    Cost().part(name, count, lambda: asyncio.run(prompts(builder, first)))
    name = "a further turn: the same, but tokenize what is new"
    cost.part(name, count, lambda: warm.extend(asyncio.run(prompts(builder, second))))
    print(f"a prompt of the further turns has {warm[0].tokens:,} tokens")
    index = PrefixIndex(max_entries=8_000_000)
    picker = make("prefix", index, random.Random(0))
    targets = Targets([Target(f"pod-{number}") for number in range(ENDPOINTS)])
    feeds = [Feed(index, target.id) for target in targets.all]
    sequences = [0] * ENDPOINTS
    for block in (16, 1):
        before = memory()
        whole = [prompt_ids(seed, options.tokens) for seed in range(count)]
        added = [prompt_ids(-1 - seed, options.new) for seed in range(count)]
        for name, ids in (("a whole prompt", whole), ("a turn", added)):
            messages = [event(each, block) for each in ids]
            Cost().part(f"KV events of {name}, blocks of {block}", count, lambda m=messages: take(feeds, sequences, m))
        taken = (memory() - before) / 1024
        print(f"{count * (options.tokens + options.new):,} tokens in the index took {taken:.0f} MiB more at their most")

    def pick() -> None:
        for number, prompt in enumerate(warm):
            decision = picker.pick(prompt, targets, float(number))
            picker.first_token(decision, number + 0.5)

    cost.part("pick among 100, and the first token", count, pick)
    print(f"in all, further turns: {cost.cores:.2f} cores at {RATE} requests/s, without streams and events")


if __name__ == "__main__":
    sys.exit(main())
