"""What `make test-clients` asks works, also where none of its clients is installed."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.clients.__main__ import answer, answer_to
from tests.clients.compliance import failures
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


def test_its_answers_have_all_that_the_schema_requires() -> None:
    said = answer_to({"messages": [{"role": "user", "content": "hi"}]})
    assert ChatCompletion.model_validate(said).choices[0].message.refusal is None
    assert {"content", "refusal", "role"} <= said["choices"][0]["message"].keys()


def test_of_the_checker_only_images_may_fail() -> None:
    wrong = {"id": "chat-tool-calling", "status": "failed", "errors": ["none"]}
    image = {"id": "chat-image-input", "status": "failed", "errors": ["HTTP 400"]}
    left_out = {"id": "chat-reasoning-summary", "status": "skipped"}
    told: dict[str, object] = {"results": [{"id": "chat-multi-turn", "status": "passed"}, wrong, image, left_out]}
    assert failures(told) == ({"chat-tool-calling": ["none"], "chat-reasoning-summary": []}, 1)
