"""Runs in a pod: asks the gateway once, or keeps streams open and counts what became of each.

client.py ask URL BODY                      one chat; prints the answer with the router's headers
client.py load URL MODEL STREAMS TOKENS SECONDS    until a line on standard input; prints the counts

HEADWATER_API_KEY is the gateway's key; empty: it is asked without one.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter

import httpx

KEY = os.environ.get("HEADWATER_API_KEY")
HEADERS = {"content-type": "application/json"} | ({"authorization": f"Bearer {KEY}"} if KEY else {})
"""SGLang takes no JSON that is not said to be."""


async def ask(url: str, body: str) -> None:
    async with httpx.AsyncClient(headers=HEADERS, timeout=300) as client:
        answer = await client.post(f"{url}/v1/chat/completions", content=body)
    headers = {name: value for name, value in answer.headers.items() if name.startswith(("x-headwater", "retry-after"))}
    print(json.dumps({"status": answer.status_code, "headers": headers, "body": answer.json()}))


async def converse(url: str, body: str, questions: list[str]) -> None:
    request, answers = json.loads(body), []
    messages = request["messages"] = []
    async with httpx.AsyncClient(headers=HEADERS, timeout=300) as client:
        for question in questions:
            messages.append({"role": "user", "content": question})
            answer = await client.post(f"{url}/v1/chat/completions", json=request)
            answers.append(answer.json() | {"endpoint": answer.headers.get("x-headwater-endpoint")})
            messages.append(answer.json()["choices"][0]["message"])
    print(json.dumps(answers))


class Streams:
    def __init__(self, url: str, model: str, tokens: int) -> None:
        self.url = f"{url}/v1/chat/completions"
        self.model = model
        self.tokens = tokens
        self.stopping = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.pods: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest = 0.0

    async def keep(self, client: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while not self.stopping.is_set():
            turn += 1
            await self.one(client, f"stream {number}, turn {turn}: tell a story")

    async def one(self, client: httpx.AsyncClient, text: str) -> None:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "max_tokens": self.tokens,
            "ignore_eos": True,
        }
        self.counts["requests"] += 1
        began, last = time.monotonic(), ""
        try:
            async with client.stream("POST", self.url, json=body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    self.refuse("refused", f"{answer.status_code} {answer.text[:200]}")
                    return
                self.pods[answer.headers.get("x-headwater-endpoint", "?")] += 1
                async for line in answer.aiter_lines():
                    last = line or last
                    if line.startswith("data: {") and '"error"' in line:
                        self.refuse("cut", line[:200])
                        return
        except httpx.HTTPError as error:
            self.refuse("refused" if not last else "cut", f"{type(error).__name__}: {error}")
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if last == "data: [DONE]":
            self.counts["whole"] += 1
        else:
            self.refuse("cut", f"ended with {last[:100]!r}")

    def refuse(self, kind: str, problem: str) -> None:
        self.counts[kind] += 1
        self.problems.append(f"{time.strftime('%X')} {problem}")


async def load(url: str, model: str, count: int, tokens: int, seconds: float) -> None:
    streams = Streams(url, model, tokens)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), streams.stopping.set)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=count)
    async with httpx.AsyncClient(headers=HEADERS, timeout=120, limits=limits) as client, asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(streams.keep(client, number))
        try:
            async with asyncio.timeout(seconds):
                await streams.stopping.wait()
        except TimeoutError:
            streams.stopping.set()
    report = {"requests": 0, "whole": 0, "cut": 0, "refused": 0} | dict(streams.counts)
    print(json.dumps(report | {"pods": streams.pods, "problems": streams.problems[:20], "slowest": streams.slowest}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ask", url, body]:
            asyncio.run(ask(url, body))
        case ["converse", url, body, *questions]:
            asyncio.run(converse(url, body, questions))
        case ["load", url, model, count, tokens, seconds]:
            asyncio.run(load(url, model, int(count), int(tokens), float(seconds)))
        case _:
            sys.exit(__doc__)
