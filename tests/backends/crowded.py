"""Twenty streams at once for two real servers of a kind behind one name, of which one takes a single request at a time.

    python -m tests.backends.crowded tgi=RECIPE

Prints what became of the streams, and whose they were in the end.
"""

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.backends.answers import BrokenContractError, read
from tests.backends.model import make_model
from tests.backends.phases import WORDS
from tests.backends.requests import MODEL, TEXT
from tests.backends.servers import PATIENCE, Server
from tests.router.gateway import RunningGateway, gateway

_STREAMS = 20


async def stream(router: RunningGateway, number: int) -> tuple[str, str]:
    """How it ended, and whose it was."""
    body = {"model": MODEL, "prompt": f"{number} {' '.join(WORDS)}", "max_tokens": 48, "stream": True, "temperature": 0}
    got = await router.client.post(TEXT, json=body, timeout=PATIENCE)
    try:
        answer = read(got.status_code, got.headers.get("content-type", ""), got.content, streamed=True)
    except BrokenContractError as error:
        return f"broken ({error})", ""
    ended = "whole" if answer.status == 200 else f"refused with {answer.status}"
    return ended, got.headers.get("x-headwater-endpoint", "")


async def see(servers: list[Server]) -> bool:
    """Whether all were whole."""
    for server in servers:
        server.start()
    try:
        await asyncio.gather(*(server.until_ready() for server in servers))
        flags = [server.endpoint for server in servers]
        async with gateway(endpoint=flags, ready=len(servers), probe_interval=1.0, policy="round_robin") as router:
            seen = await asyncio.gather(*(stream(router, number) for number in range(_STREAMS)))
            for (ended, server), count in sorted(Counter(seen).items()):
                print(f"{count} of {_STREAMS} streams: {ended}, by {server or 'nobody'}")
            page = (await router.client.get("/metrics")).text
            print("\n".join(line for line in page.splitlines() if line.startswith("headwater_router_retries_total")))
    finally:
        for server in servers:
            server.kill()
    return all(ended == "whole" for ended, _ in seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", metavar="BACKEND[=RECIPE]")
    backend, _, recipe = parser.parse_args().server.partition("=")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / MODEL)
        full, roomy = Server(backend, recipe, model, "full", 1), Server(backend, recipe, model, "roomy", _STREAMS)
        return 0 if asyncio.run(see([full, roomy])) else 1


if __name__ == "__main__":
    sys.exit(main())
