"""One engine is killed in the middle of many streams: the others finish, new requests go on, nothing hangs."""

import asyncio
import os
import signal

import httpx

MODEL = "smollm2"


async def stream(client: httpx.AsyncClient, number: int, started: asyncio.Event) -> tuple[str, str, int]:
    """One long stream. Returns the endpoint that served it, its last event, and how many tokens came."""
    body = {
        "model": MODEL,
        "prompt": f"Story number {number}: once upon a time",
        "max_tokens": 120,
        "ignore_eos": True,
        "stream": True,
    }
    tokens, last = 0, ""
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        endpoint = answer.headers["x-headwater-endpoint"]
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
                tokens += '"text"' in line
                started.set()
    return endpoint, last, tokens


async def test_a_killed_engine_takes_only_its_own_streams_with_it(stack_to_break) -> None:
    router, (victim, survivor) = stack_to_break.router, stack_to_break.engines
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=router.url, timeout=120, limits=limits) as client:
        started = [asyncio.Event() for _ in range(32)]
        async with asyncio.timeout(250), asyncio.TaskGroup() as group:
            streams = [group.create_task(stream(client, n, event)) for n, event in enumerate(started)]
            for event in started:
                await event.wait()
            os.killpg(victim.process.pid, signal.SIGKILL)
        results = [task.result() for task in streams]

        by_engine: dict[str, list[tuple[str, int]]] = {}
        for endpoint, last, tokens in results:
            by_engine.setdefault(endpoint, []).append((last, tokens))
        assert len(by_engine) == 2, "both engines had streams"
        whole = [name for name, ends in by_engine.items() if all(last == "[DONE]" for last, _ in ends)]
        (cut,) = by_engine.keys() - set(whole)
        assert len(whole) == 1, "the survivor's streams all finished"
        assert all('"error"' in last for last, _ in by_engine[cut]), "a cut stream ends with an error event"

        for _ in range(4):
            answer = await client.post("/v1/completions", json={"model": MODEL, "prompt": "Hello", "max_tokens": 2})
            assert answer.status_code == 200
            assert answer.headers["x-headwater-endpoint"] == whole[0]
    assert router.metric("headwater_router_endpoint_in_flight") == 0
    assert survivor.metric("headwater_engine_requests_running") == 0
    assert survivor.metric("headwater_engine_requests_waiting") == 0
