"""Two real model servers behind one name, with `share: Auto`: what the router finds, of a short mixed load.

    python -m benchmarks.mixed_real --bulk http://127.0.0.1:8001 --prefix http://127.0.0.1:8002 --model NAME

Both must serve the model under that name; `--bulk` is vLLM, `--prefix` our engine. Half of the requests begin with one
of two long instructions, half are short and have nothing in common. Prints what each class came to, by deployment, and
what clients saw of it.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx

from benchmarks.servers import free_ports, server

WORDS: Final = ("river", "stone", "cloud", "lamp", "bread", "winter", "garden", "silver", "quiet", "market", "letter")


@dataclass(slots=True)
class Seen:
    kind: str
    endpoint: str
    seconds: float


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def body(model: str, rng: random.Random, number: int, out: int) -> tuple[str, dict[str, Any]]:
    shared = number % 2 == 0
    messages = [{"role": "user", "content": text(rng, 20 if shared else 40)}]
    if shared:
        messages.insert(0, {"role": "system", "content": text(random.Random(rng.randrange(2)), 600)})
    fields = {"max_tokens": out, "temperature": 0, "ignore_eos": True, "stream": True}
    return "shared" if shared else "plain", {"model": model, "messages": messages, **fields}


async def ask(client: httpx.AsyncClient, kind: str, request: dict[str, Any]) -> Seen:
    began = time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for _ in answer.aiter_bytes():
            pass
    return Seen(kind, answer.headers["x-headwater-endpoint"], time.perf_counter() - began)


async def load(port: int, model: str, count: int, concurrency: int, out: int) -> list[Seen]:
    rng, seen = random.Random(1), list[Seen]()
    requests = iter([body(model, rng, number, out) for number in range(count)])
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:

        async def worker() -> None:
            for kind, request in requests:
                seen.append(await ask(client, kind, request))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    return seen


def tell(seen: list[Seen], shares: list[dict[str, Any]]) -> None:
    by: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for each in seen:
        by[each.kind, each.endpoint].append(each.seconds)
    for (kind, endpoint), seconds in sorted(by.items()):
        print(f"sent as {kind:8} to {endpoint:8} {len(seconds):4} requests, median {median(seconds):.2f} s")
    for each in shares:
        print(json.dumps(each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bulk", required=True, help="URL of a vLLM server")
    parser.add_argument("--prefix", required=True, help="URL of our engine")
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--output-tokens", type=int, default=24)
    options = parser.parse_args()
    port, admin = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        endpoints = Path(folder) / "endpoints.json"
        both = (("bulk", options.bulk, "vllm"), ("prefix", options.prefix, "headwater"))
        endpoints.write_text(
            json.dumps(
                [
                    {"url": url, "name": name, "backend": backend, "deployment": name, "share": "Auto"}
                    for name, url, backend in both
                ]
            )
        )
        command = f"{sys.executable} -m headwater route --port {port} --endpoints-file {endpoints} --expose-endpoint"
        url = f"http://127.0.0.1:{admin}"

        def ready() -> bool:
            try:
                answer = httpx.get(f"{url}/ready")
            except httpx.HTTPError:
                return False
            return answer.status_code == 200 and answer.json()["ready_endpoints"] == len(both)

        with server(f"{command} --admin-port {admin}", ready, timeout=60):
            seen = asyncio.run(load(port, options.model, options.requests, options.concurrency, options.output_tokens))
            (model,) = [each for each in httpx.get(f"{url}/admin/models").json() if each["name"] == options.model]
    tell(seen, model["shares"])


if __name__ == "__main__":
    main()
