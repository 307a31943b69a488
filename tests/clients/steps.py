"""What published clients do with a gateway. Run by their own Python: nothing of this repository is imported.

    python steps.py URL [real]

Prints a line of JSON for each step: its name, and what was wrong; empty: nothing. `real`: a real model answers, and no
stand-in (`told.py`).
"""

import asyncio
import json
import traceback
from typing import Any

import coding  # noqa: F401  # its steps
from told import ASK, QUESTION, REAL, STEPS, SUNNY, TOO_LONG, URL, V1, City, equal, step, weather


@step
def openai_chat() -> None:
    from openai import OpenAI, pydantic_function_tool

    chats = OpenAI(base_url=V1, api_key="x").chat.completions
    equal(chats.create(model="m", messages=ASK).choices[0].message.content, SUNNY)
    with chats.stream(model="m", messages=ASK) as told:
        equal(told.get_final_completion().choices[0].message.content, SUNNY)
    asked: dict[str, Any] = {"model": "m", "messages": ASK}
    equal(chats.parse(**asked, response_format=City).choices[0].message.parsed, City(city="Bern"))
    with chats.stream(**asked, response_format=City) as told:
        equal(told.get_final_completion().choices[0].message.parsed, City(city="Bern"))
    tools = [pydantic_function_tool(City, name="weather")]
    (call,) = (
        chats.parse(**asked, tools=tools, tool_choice="required", parallel_tool_calls=False)
        .choices[0]
        .message.tool_calls
    )
    equal((call.function.name, call.function.parsed_arguments), ("weather", City(city="Bern")))


@step
def openai_responses() -> None:
    from openai import OpenAI, pydantic_function_tool

    responses = OpenAI(base_url=V1, api_key="x").responses
    asked: dict[str, Any] = {"model": "m", "input": ASK}
    equal(responses.create(**asked).output_text, SUNNY)
    with responses.stream(**asked) as told:
        equal(told.get_final_response().output_text, SUNNY)
    equal(responses.parse(**asked, text_format=City).output_parsed, City(city="Bern"))
    with responses.stream(**asked, text_format=City) as told:
        equal(told.get_final_response().output_parsed, City(city="Bern"))
    function = pydantic_function_tool(City, name="weather")["function"]
    made = responses.create(**asked, tools=[{"type": "function", **function}], tool_choice="required")
    equal((made.output[-1].name, json.loads(made.output[-1].arguments)), ("weather", {"city": "Bern"}))


@step
def anthropic_messages() -> None:
    from anthropic import Anthropic

    messages = Anthropic(base_url=URL, api_key="x").messages
    asked: dict[str, Any] = {"model": "m", "max_tokens": 50, "messages": ASK}
    equal(messages.create(**asked).content[-1].text, SUNNY)
    with messages.stream(**asked) as told:
        equal("".join(told.text_stream), SUNNY)
    tool = {"name": "weather", "input_schema": City.model_json_schema()}
    with messages.stream(**asked, tools=[tool], tool_choice={"type": "tool", "name": "weather"}) as told:
        call = told.get_final_message().content[-1]
    equal((call.name, call.input), ("weather", {"city": "Bern"}))


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

    made = litellm.responses(model="openai/m", api_base=V1, api_key="x", input=QUESTION)
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
        litellm.completion(model="openai/m", api_base=V1, api_key="x", messages=[{"role": "user", "content": TOO_LONG}])
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("no ContextWindowExceededError")


def langchain(model: Any) -> None:
    from langchain_core.tools import tool

    equal(model.invoke(QUESTION).text, SUNNY)
    equal("".join(chunk.text for chunk in model.stream(QUESTION)), SUNNY)
    (call,) = model.bind_tools([tool(weather)], tool_choice="weather").invoke(QUESTION).tool_calls
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
    modes = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.RESPONSES_TOOLS]
    # Any JSON object is what this one asks for, so that it lies with the model which one it is.
    for mode in modes if REAL else [*modes, instructor.Mode.JSON]:
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
        held = [ToolOutput(City), NativeOutput(City)]
        for output in held if REAL else [*held, PromptedOutput(City)]:
            equal((await Agent(model, output_type=output).run("Where?")).output, City(city="Bern"))
        equal((await Agent(model, tools=[weather]).run(QUESTION)).output, SUNNY)
        async with Agent(model, tools=[weather]).run_stream(QUESTION) as told:
            equal(await told.get_output(), SUNNY)


@step
def outlines_as_of_vllm_and_of_sglang() -> None:
    from typing import Literal

    import outlines
    from openai import OpenAI
    from outlines.types import CFG, Regex

    client = OpenAI(base_url=V1, api_key="x")
    for model in (outlines.from_vllm(client, "m"), outlines.from_sglang(client, "m")):
        equal(model(QUESTION), SUNNY)
        equal("".join(model.stream(QUESTION)), SUNNY)
        equal(City.model_validate_json(model("Where?", City)), City(city="Bern"))
        if REAL:
            choice, number = model("Which?", Literal["Bern", "Basel"]), model("When?", Regex("[0-9]{4}"))
            if choice not in ("Bern", "Basel") or not (number.isdecimal() and len(number) == 4):
                raise AssertionError(f"{choice!r}, {number!r}")
    grammar = CFG('start: "Bern" | "Basel"')
    if REAL and (said := outlines.from_vllm(client, "m")("Where?", grammar)) not in ("Bern", "Basel"):
        raise AssertionError(said)


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
        equal((await Runner.run(agent, QUESTION)).final_output, SUNNY)
        told = Runner.run_streamed(agent, QUESTION)
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
