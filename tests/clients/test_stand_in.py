"""What `make test-clients` asks works, also where none of its clients is installed."""

from typing import Any

import openai
import pytest

from tests.clients.__main__ import answer
from tests.router.gateway import gateway
from tests.router.upstream import upstream

TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}


async def test_it_calls_a_tool_then_says_what_that_said_and_keeps_to_forms() -> None:
    async with upstream() as engine, gateway(engine, backend="headwater") as router:
        engine.answer = answer
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{router.port}/v1", api_key="x", max_retries=0
        ) as client:
            tool: Any = {"type": "function", "name": "weather", "parameters": TOOL, "strict": True}
            made = await client.responses.create(model="m", input="hi", tools=[tool])
            assert made.output[0].type == "function_call"
            for _ in range(10):
                output: Any = [{"type": "function_call_output", "call_id": made.output[0].call_id, "output": "sunny"}]  # type: ignore[union-attr]
                told = await client.responses.create(
                    model="m", input=output, previous_response_id=made.id, tools=[tool]
                )
                assert told.output_text == "It is sunny."
                made = await client.responses.create(
                    model="m", input="and now?", previous_response_id=told.id, tools=[tool]
                )
            with pytest.raises(openai.BadRequestError, match="prompt is too long"):
                await client.responses.create(model="m", input="too long")
