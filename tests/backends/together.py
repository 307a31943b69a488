"""Two real servers behind one name, a conversation each, and a router that starts anew in the middle.

    python -m tests.backends.together vllm=RECIPE sglang=RECIPE

Prints the cached tokens of each turn, as predicted and as the server says.
"""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.backends.model import make_model
from tests.backends.phases import ask_turn, system_prompt
from tests.backends.requests import MODEL
from tests.backends.servers import Server
from tests.router.gateway import RunningGateway, gateway

_TURNS = 3


@dataclass(slots=True)
class Conversation:
    seed: int
    server: str = ""
    """That answered its first turn."""
    messages: list[dict[str, str]] = field(default_factory=list)


async def talk(router: RunningGateway, conversations: list[Conversation], when: str) -> None:
    for turn in range(_TURNS):
        for each in conversations:
            each.messages.append({"role": "user", "content": f"Question {turn}, {when}?"})
            server, predicted, actual, decision, text = await ask_turn(router, each.messages)
            each.messages.append({"role": "assistant", "content": text})
            each.server = each.server or server
            print(f"| {each.seed} | {when} | {server} | {decision} | {predicted} | {actual} |", flush=True)


async def see(servers: list[Server], folder: Path) -> None:
    for server in servers:
        server.start()
    try:
        await asyncio.gather(*(server.until_ready() for server in servers))
        flags = [server.endpoint for server in servers]
        settings = {"endpoint": flags, "policy": "prefix", "tokenizer": [f"{MODEL}={folder}"], "probe_interval": 1.0}
        print("| conversation | | answered by | decision | predicted | actual |\n|---|---|---|---|---|---|")
        conversations: list[Conversation] = []
        async with gateway(ready=len(servers), **settings) as router:
            await asyncio.sleep(2)
            while {each.server for each in conversations} != {server.backend for server in servers}:
                started = Conversation(len(conversations) + 2)
                started.messages.append({"role": "system", "content": system_prompt(started.seed)})
                conversations.append(started)
                await talk(router, [started], "first router")
        async with gateway(ready=len(servers), **settings) as router:
            await asyncio.sleep(2)
            await talk(router, conversations, "second router")
    finally:
        for server in servers:
            server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", nargs="+", metavar="BACKEND[=RECIPE]")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / MODEL)
        asked = [each.partition("=") for each in parser.parse_args().servers]
        asyncio.run(see([Server(backend, recipe, model) for backend, _, recipe in asked], model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
