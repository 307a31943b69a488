"""Published clients through the gateway, to an engine that has only chat completions.

    python -m tests.clients PYTHON

PYTHON: of the environment that they are installed in. Exits with 1 where one of them met what it does not understand.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.headwater.chats import chat, stream
from tests.router.gateway import gateway
from tests.router.upstream import JSON, SSE, Exchange, upstream

_STEPS = Path(__file__).with_name("steps.py")
_FINE = "HTTP 200 (expected [400"
"""A request without a model is no error here where there is only one."""
_TOO_LONG = "prompt is too long: This model's maximum context length is 8 tokens."


async def answer(exchange: Exchange) -> None:
    """As `steps` says that it does."""
    asked = json.loads(exchange.body)
    if asked["messages"][-1]["content"] == "too long":
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
    if (asked.get("response_format") or {"type": "text"})["type"] != "text" or "JSON" in asked_for:
        return chat('{"city":"Bern"}')
    return chat("It is sunny.")


async def see(python: str) -> bool:
    failed = False
    async with upstream() as engine, gateway(engine, backend="headwater") as router:
        engine.answer = answer
        home = {"OPENAI_API_KEY": "x", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
        steps = await asyncio.create_subprocess_exec(
            python,
            str(_STEPS),
            f"http://127.0.0.1:{router.port}",
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | home,
        )
        assert steps.stdout is not None
        async for line in steps.stdout:
            if line.startswith(b"{"):
                seen = json.loads(line)
                failed = failed or bool(seen["wrong"])
                print(f"{'FAILED' if seen['wrong'] else 'passed'} {seen['step']} {seen['wrong']}", flush=True)
        failed = await steps.wait() != 0 or failed
        for form in ("open-responses", "anthropic"):
            failed = not await complies(python, form, router.port) or failed
    return failed


async def complies(python: str, form: str, port: int) -> bool:
    """Whether each answer is of the schema that the API has published, as a checker finds."""
    checker = Path(python).with_name("llm-comply")
    flags = ["run", "--format", form, "-u", f"http://127.0.0.1:{port}/v1", "-k", "x", "-m", "m", "-i", _FINE]
    run = await asyncio.create_subprocess_exec(checker, *flags)
    return await run.wait() == 0


if __name__ == "__main__":
    sys.exit(asyncio.run(see(sys.argv[1])))
