"""What is more than a request: many at once, too many, a server that dies or ends, and what its cache tells."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.backends.answers import Answer, BrokenContractError, read
from tests.backends.requests import CHAT, MODEL, TEXT
from tests.backends.servers import LIMIT, Server
from tests.router.gateway import RunningGateway, until

WORDS = ("river", "stone", "cloud", "amber", "forest", "quiet", "engine", "harbor", "window", "copper", "garden")


async def ask(router: RunningGateway, path: str, **fields: Any) -> Answer:
    body = {"model": MODEL, "temperature": 0, "max_tokens": 8} | fields
    got = await router.client.post(path, json=body, timeout=900)
    kind = got.headers.get("content-type", "")
    return read(got.status_code, kind, got.content, streamed=bool(fields.get("stream")))


async def under_load(router: RunningGateway) -> str:
    """As many streams as the server takes: none is lost, and the router never takes it out."""
    begun = {number: asyncio.create_task(_stream(router, number, 64)) for number in range(LIMIT)}
    unready = 0
    while not all(task.done() for task in begun.values()):
        unready += not all(endpoint.ready for endpoint in router.router.fleet)
        await asyncio.sleep(0.02)
    outcomes = Counter([task.result() for task in begun.values()])
    return f"{outcomes['whole']} of {LIMIT} streams whole, {'always ready' if not unready else 'not always ready'}"


async def overloaded(router: RunningGateway) -> str:
    count = 6 * LIMIT
    outcomes = Counter(await asyncio.gather(*(_stream(router, number, 24) for number in range(count))))
    told = [f"{outcomes['whole']} of {count} streams whole"]
    told += [f"{number} {outcome}" for outcome, number in sorted(outcomes.items()) if outcome != "whole"]
    return ", ".join(told)


async def _stream(router: RunningGateway, number: int, tokens: int) -> str:
    try:
        answer = await ask(router, TEXT, prompt=f"{number} {' '.join(WORDS)}", max_tokens=tokens, stream=True)
    except BrokenContractError as error:
        return f"broken ({error})"
    return "whole" if answer.status == 200 else f"refused with {answer.status}"


async def conversation(router: RunningGateway, turns: Sequence[str], system: str) -> list[tuple[int, int | None]]:
    """Of each turn the cached tokens, as predicted and as the server says."""
    messages: list[dict[str, str]] = [{"role": "system", "content": system}]
    seen = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        done = await ask_turn(router, messages)
        seen.append((done.predicted, done.actual))
        messages.append({"role": "assistant", "content": done.text})
    return seen


class Turn(NamedTuple):
    server: str
    predicted: int
    actual: int | None
    """Cached tokens, as the server says."""
    decision: str
    text: str


async def ask_turn(router: RunningGateway, messages: Sequence[dict[str, str]]) -> Turn:
    before = await predicted(router)
    body = {"model": MODEL, "temperature": 0, "max_tokens": 8, "messages": messages}
    got = await router.client.post(CHAT, json=body, timeout=900)
    answer = read(got.status_code, "", got.content, streamed=False)
    told = int(await predicted(router) - before)
    await asyncio.sleep(1)  # Until events and gauges of it have come.
    headers = got.headers
    return Turn(
        headers["x-headwater-endpoint"], told, answer.cached_tokens, headers["x-headwater-decision"], answer.texts[0]
    )


async def predicted(router: RunningGateway) -> float:
    router.router.pages.forget()
    page = (await router.client.get("/metrics")).text
    name = "headwater_router_predicted_cached_tokens_total"
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


def system_prompt(seed: int) -> str:
    return " ".join(WORDS[(number * seed) % len(WORDS)] for number in range(90))


async def restarted(server: Server, router: RunningGateway) -> str:
    """Killed under the router, and started again in the same place."""
    server.kill()
    killed = time.monotonic()
    await until(lambda: not any(endpoint.ready for endpoint in router.router.fleet))
    noticed = time.monotonic() - killed
    got = await router.client.post(CHAT, json={"model": MODEL, "messages": [{"role": "user", "content": "a"}]})
    server.start()
    await server.until_ready()
    back = time.monotonic()
    await until(lambda: all(endpoint.ready for endpoint in router.router.fleet))
    came = time.monotonic() - back
    answer = await ask(router, TEXT, prompt="a")
    return (
        f"out after {noticed:.1f} s ({got.status_code} meanwhile), back {came:.1f} s after its first answer, "
        f"answers {answer.status}"
    )


async def drained(server: Server, router: RunningGateway) -> str:
    """It is asked to end within an answer."""
    body = {"model": MODEL, "prompt": "a", "max_tokens": 240, "stream": True, "temperature": 0}
    async with router.client.stream("POST", TEXT, json=body, timeout=900) as got:
        pieces = got.aiter_bytes()
        answer = await anext(pieces)
        server.terminate()
        async for piece in pieces:
            answer += piece
    assert server.process is not None
    try:
        whole = read(200, "text/event-stream", answer, streamed=True).choices[0].reason == "length"
    except (BrokenContractError, ValueError):
        whole = False
    try:
        ended = f"ends with {await asyncio.to_thread(server.process.wait, 150)}"
    except Exception:
        ended = "does not end within 150 s"
    return f"the answer is {'whole' if whole else 'broken off'}; {ended}"
