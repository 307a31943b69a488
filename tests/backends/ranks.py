"""A real server with two data-parallel engines: conversations side by side, straight to it, and through our router.

    python -m tests.backends.ranks vllm=RECIPE

Prints the cached share of their prompts of either way, and of the router's decisions how many each rank got, and how
many tokens each was expected to have in its cache. Fails where the server found others than were expected.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from tests.backends.answers import read
from tests.backends.model import make_model
from tests.backends.phases import WORDS
from tests.backends.requests import CHAT, MODEL
from tests.backends.servers import PATIENCE, Server
from tests.router.gateway import gateway, until

_RANKS: Final = 2
_CONVERSATIONS: Final = 8
_TURNS: Final = 4
_FLAGS: Final = {
    "vllm": ("--data-parallel-size", str(_RANKS), "--enable-prompt-tokens-details"),
    "sglang": ("--dp-size", str(_RANKS)),
}


class Told(NamedTuple):
    """Tokens, as the server says."""

    prompt: int
    cached: int


async def converse(http: httpx.AsyncClient, rng: random.Random) -> list[Told]:
    messages = [{"role": "system", "content": " ".join(rng.choices(WORDS, k=90))}]
    told = []
    for turn in range(_TURNS):
        messages.append({"role": "user", "content": f"Question {turn}: {' '.join(rng.choices(WORDS, k=8))}?"})
        body = {"model": MODEL, "temperature": 0, "max_tokens": 8, "messages": messages}
        got = await http.post(CHAT, json=body, timeout=PATIENCE)
        answer = read(got.status_code, "", got.content, streamed=False)
        assert answer.status == 200, answer
        assert answer.usage is not None
        told.append(Told(answer.usage["prompt_tokens"], answer.cached_tokens or 0))
        messages.append({"role": "assistant", "content": answer.texts[0]})
        await asyncio.sleep(1 + rng.random())  # Until events and gauges of it have come.
    return told


async def converse_all(http: httpx.AsyncClient, seed: str) -> list[Told]:
    """Side by side. Prints what was cached."""
    rngs = [random.Random(f"{seed} {number}") for number in range(_CONVERSATIONS)]
    told = [each for one in await asyncio.gather(*(converse(http, rng) for rng in rngs)) for each in one]
    prompt, cached = (sum(each) for each in zip(*told, strict=True))
    print(f"{seed}: {cached} of {prompt} prompt tokens were cached, {cached / prompt:.1%}", flush=True)
    return told


async def see(server: Server, folder: Path) -> bool:
    """Whether the server found what was expected."""
    server.start()
    try:
        await server.until_ready()
        async with httpx.AsyncClient(base_url=server.url) as http:
            await converse_all(http, "straight to the server")
        settings: dict[str, Any] = {
            "endpoint": [server.endpoint],
            "policy": "prefix",
            "tokenizer": [f"{MODEL}={folder}"],
        }
        async with gateway(ready=1, probe_interval=1.0, **settings) as router:
            [endpoint] = router.router.fleet
            await until(lambda: len(endpoint.targets) == _RANKS)
            await asyncio.sleep(2)  # Until it listens to the events of both.
            told = await converse_all(router.client, "through the router")
            decisions = [each.decision for each in router.router.dispatcher.decisions]
    finally:
        server.kill()
    expected = Counter[int | None]()
    for each in decisions:
        expected[each.target.rank] += each.predicted_cached_tokens
    for rank, count in sorted(Counter(each.target.rank for each in decisions).items()):
        print(f"rank {rank}: {count} requests, {expected[rank]} tokens expected in its cache")
    return expected.total() == sum(each.cached for each in told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", metavar="BACKEND=RECIPE")
    backend, _, recipe = parser.parse_args().server.partition("=")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / MODEL)
        return 0 if asyncio.run(see(Server(backend, recipe, model, more=_FLAGS[backend]), model)) else 1


if __name__ == "__main__":
    sys.exit(main())
