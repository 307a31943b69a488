"""What published clients do with a gateway. Run by their own Python: nothing of this repository is imported.

    python steps.py URL

Prints a line of JSON for each step: its name, and what was wrong; empty: nothing. Whoever answers there calls the first
tool that it is shown, for Bern, says that it is sunny once the tool has answered, and gives Bern where a form is asked
for.
"""

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

URL = sys.argv[1]
V1, SUNNY = f"{URL}/v1", "It is sunny."
ASK = [{"role": "user", "content": "How is the weather in Bern?"}]


class City(BaseModel):
    """A place."""

    city: str


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


STEPS: dict[str, Callable[[], Any]] = {}


def step(run: Callable[[], Any]) -> Callable[[], Any]:
    STEPS[run.__name__] = run
    return run


def equal(found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"{found!r}, not {expected!r}")


@step
def litellm_chat_and_stream() -> None:
    import litellm

    asked: dict[str, Any] = {"model": "openai/m", "api_base": V1, "api_key": "x", "messages": ASK}
    equal(litellm.completion(**asked).choices[0].message.content, SUNNY)
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True) if chunk.choices
    ]
    equal("".join(pieces), SUNNY)


@step
def litellm_responses() -> None:
    import litellm

    made = litellm.responses(model="openai/m", api_base=V1, api_key="x", input="How is the weather?")
    equal(made.output[-1].content[0].text, SUNNY)


@step
def litellm_anthropic() -> None:
    import litellm

    made = litellm.completion(model="anthropic/m", api_base=URL, api_key="x", messages=ASK, max_tokens=50)
    equal(made.choices[0].message.content, SUNNY)
    equal(made.usage.prompt_tokens, 9)


@step
def litellm_sees_a_full_context_for_what_it_is() -> None:
    import litellm

    try:
        litellm.completion(
            model="openai/m", api_base=V1, api_key="x", messages=[{"role": "user", "content": "too long"}]
        )
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("no ContextWindowExceededError")


def langchain(model: Any) -> None:
    from langchain_core.tools import tool

    equal(model.invoke("How is the weather?").text, SUNNY)
    equal("".join(chunk.text for chunk in model.stream("How is the weather?")), SUNNY)
    (call,) = model.bind_tools([tool(weather)]).invoke("How is the weather?").tool_calls
    equal((call["name"], call["args"]), ("weather", {"city": "Bern"}))
    equal(model.with_structured_output(City).invoke("Where?"), City(city="Bern"))


@step
def langchain_openai_chat() -> None:
    from langchain_openai import ChatOpenAI

    langchain(ChatOpenAI(model="m", base_url=V1, api_key="x"))


@step
def langchain_openai_responses() -> None:
    from langchain_openai import ChatOpenAI

    langchain(ChatOpenAI(model="m", base_url=V1, api_key="x", use_responses_api=True, output_version="responses/v1"))


@step
def langchain_anthropic() -> None:
    from langchain_anthropic import ChatAnthropic

    langchain(ChatAnthropic(model="m", base_url=URL, api_key="x", max_tokens=50))


@step
def instructor_in_each_mode() -> None:
    import anthropic
    import instructor
    import openai

    client = openai.OpenAI(base_url=V1, api_key="x")
    for mode in (
        instructor.Mode.TOOLS,
        instructor.Mode.JSON,
        instructor.Mode.JSON_SCHEMA,
        instructor.Mode.RESPONSES_TOOLS,
    ):
        asked = instructor.from_openai(client, mode=mode)
        found = asked.chat.completions.create(model="m", messages=ASK, response_model=City, max_retries=0)
        equal(found.city, "Bern")  # It makes a class of its own of ours.
    told = instructor.from_anthropic(anthropic.Anthropic(base_url=URL, api_key="x"))
    equal(told.messages.create(model="m", max_tokens=50, messages=ASK, response_model=City).city, "Bern")


@step
async def pydantic_ai_in_each_way() -> None:
    """Not with Anthropic's client: its newest is too new for pydantic-ai, whatever the server."""
    from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=V1, api_key="x")
    for model in (OpenAIChatModel("m", provider=provider), OpenAIResponsesModel("m", provider=provider)):
        for output in (ToolOutput(City), NativeOutput(City), PromptedOutput(City)):
            equal((await Agent(model, output_type=output).run("Where?")).output, City(city="Bern"))
        equal((await Agent(model, tools=[weather]).run("How is the weather?")).output, SUNNY)
        async with Agent(model, tools=[weather]).run_stream("How is the weather?") as told:
            equal(await told.get_output(), SUNNY)


@step
async def openai_agents_loop() -> None:
    from agents import (
        Agent,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_tracing_disabled(disabled=True)
    client = AsyncOpenAI(base_url=V1, api_key="x")
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        agent = Agent(name="a", instructions="Be brief.", tools=[function_tool(weather)], model=kind("m", client))
        equal((await Runner.run(agent, "How is the weather?")).final_output, SUNNY)
        told = Runner.run_streamed(agent, "How is the weather?")
        async for _ in told.stream_events():
            pass
        equal(told.final_output, SUNNY)


def main() -> None:
    for name, run in STEPS.items():
        wrong = ""
        try:
            done = run()
            if asyncio.iscoroutine(done):
                asyncio.run(done)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(json.dumps({"step": name, "wrong": wrong[:2000]}), flush=True)


if __name__ == "__main__":
    main()
