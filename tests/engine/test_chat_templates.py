"""OpenAI's messages become the prompt that each model's own template makes of them, as transformers renders it."""

import inspect
import json
import os
import re
from functools import partial
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.errors import BadRequestError
from headwater_engine.server.chat_template import ChatTemplate
from headwater_engine.server.encoding import PromptEncoder
from headwater_engine.server.messages import TOOL as MADE_UP_TOOL
from headwater_engine.server.messages import Style, learn
from headwater_engine.server.template_process import Templates
from headwater_engine.server.tools_in_words import calls_in_words
from tests.engine.chat_models import FIXTURES, TOKENIZERS, template, template_source, templates, tokenizer, variables

REAL = ["llama3", "llama3_1", "qwen3", "deepseek_v3", "gemma3", "gemini", "smollm2"]
REAL += ["qwen3_coder", "deepseek_r1", "deepseek_v3_2", "gpt_oss", "hermes3", "llama_guard3", "mistral_nemo", "phi3_5"]
TODAY = re.compile(r"Current date: [\d-]+")
"""As gpt-oss's template writes it."""
WITH_TOOLS_ONLY = ["hermes3"]
OURS = ["parts", "arguments_items", "arguments_printed", "developer"]

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a <city>.", "parameters": CITY}}
CALL = {"name": "weather", "arguments": '{"city": "Zürich", "days": 2}'}
CALLS = [
    {"role": "user", "content": "How is it?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "call00001", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "call00001", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "Fine."},
    {"role": "user", "content": "Thanks."},
]
PLAIN = [
    {"role": "user", "content": "  Hi, 世界 \n"},
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\nHello!"},
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": PLAIN},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *PLAIN]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, *PLAIN]},
    "calls": {"messages": CALLS, "tools": [TOOL]},
    "continued": {"messages": [*PLAIN, {"role": "assistant", "content": "So "}], "continue_final_message": True},
    "variables": {"messages": PLAIN, "chat_template_kwargs": {"enable_thinking": False}},
}

# What a person who reads the templates would give them.
WANTED = {name: Style() for name in [*REAL, *OURS]} | {
    "deepseek_v3": Style(text_arguments=True, no_content=None),
    "deepseek_r1": Style(text_arguments=True, no_content=None),
    "llama_guard3": Style(parts=True, no_content=[]),
    "gpt_oss": Style(developer=True),
    "parts": Style(parts=True, no_content=[]),
    "arguments_printed": Style(text_arguments=True),
    "developer": Style(developer=True),
}


def prompt(name: str, conversation: dict[str, Any]) -> str:
    """Ours, of a request's body; or what is wrong."""
    request = ChatCompletionRequest.parse(json.dumps({"model": "m", **conversation}).encode())
    try:
        text = templates(name).render(
            [message.model_dump(exclude_unset=True) for message in request.messages],
            request.tools,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            variables=request.chat_template_kwargs,
        )
        return TODAY.sub("Current date: today", text)
    except Exception as error:
        return f"error: {error}"


def expected(name: str, conversation: dict[str, Any]) -> str:
    """Transformers', of messages that are written as this template wants them."""
    style = WANTED[name]
    messages = []
    for given in conversation["messages"]:
        message = json.loads(json.dumps(given))
        if isinstance(content := message["content"], list):
            message["content"] = "\n".join(part["text"] for part in content)
        if style.parts and message["content"] is not None:
            texts = [part["text"] for part in content] if isinstance(content, list) else [content]
            message["content"] = [{"type": "text", "text": text} for text in texts]
        for call in message.get("tool_calls", []):
            message["content"] = style.no_content
            if not style.text_arguments:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        if message["role"] == "developer" and not style.developer:
            message["role"] = "system"
        if message["role"] == "tool":
            message["name"] = CALL["name"]
        messages.append(message)
    continued = conversation.get("continue_final_message", False)
    try:
        text = render_jinja_template(
            [messages],
            tools=conversation.get("tools"),
            chat_template=template_source(name),
            continue_final_message=continued,
            add_generation_prompt=not continued,
            **{**variables(name), **conversation.get("chat_template_kwargs", {})},
        )[0][0]
        return str(TODAY.sub("Current date: today", text))
    except Exception as error:
        return f"error: {error}"


def golden() -> dict[str, dict[str, str]]:
    file = FIXTURES / "golden.json"
    if os.environ.get("UPDATE_GOLDEN"):
        made = {name: {case: expected(name, each) for case, each in CONVERSATIONS.items()} for name in WANTED}
        file.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return dict(json.loads(file.read_text()))


GOLDEN = golden()


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", [*REAL, *OURS])
def test_a_conversation_is_rendered_as_transformers_does(name: str, case: str) -> None:
    conversation, wanted = CONVERSATIONS[case], GOLDEN[name][case]
    assert expected(name, conversation) == wanted, "transformers itself has changed"
    if not templates(name).shows_tools:
        conversation = conversation | {"tools": None}
        if not templates(name).calls_as:
            wanted = expected(name, conversation | {"messages": calls_in_words(conversation["messages"])})
    assert prompt(name, conversation) == wanted


@pytest.mark.parametrize("name", ["smollm2", "llama3", "gemma3", "gemini", "phi3_5", "deepseek_v3", "deepseek_r1"])
def test_tools_that_a_template_leaves_out_are_described_in_words(name: str) -> None:
    """The call is in the template's own format, where it has one."""
    text = prompt(name, CONVERSATIONS["calls"])
    assert "Of a <city>." in text and "call one" in text
    assert '{"city": "Zürich", "days": 2}' in text and '{"sky": "blue"}' in text
    assert ("<tool_call>" in text) == (not name.startswith("deepseek"))


def test_words_about_tools_stand_where_the_template_has_a_place_for_them() -> None:
    told = {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "tools": [TOOL],
    }
    text = prompt("smollm2", told)
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.") and text.count("system") == 1
    text = prompt("gemini", {**told, "messages": told["messages"][1:]})
    assert text.startswith("<bos><start_of_turn>user\nYou can call functions.") and "\n\nHi<end_of_turn>" in text


def test_results_of_several_calls_are_one_turn_in_words() -> None:
    results = [{"role": "tool", "tool_call_id": f"call0000{n}", "content": f"result {n}"} for n in (1, 2)]
    text = prompt("smollm2", {"messages": [*CALLS[:2], *results]})
    assert "result 1\n</tool_response>\n<tool_response>\nresult 2" in text


@pytest.mark.parametrize("name", [*REAL, *OURS])
def test_what_a_template_wants_is_found_out(name: str) -> None:
    tools = [MADE_UP_TOOL] if name in WITH_TOOLS_ONLY else None
    assert learn(template_source(name), partial(template(name).render, tools=tools)) == WANTED[name]


def test_a_template_for_tools_is_tried_with_a_tool() -> None:
    """Its arguments are text, which only shows where it has tools."""
    with_tools = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + template_source("arguments_printed")
    both = Templates(template_source("smollm2"), with_tools, variables("arguments_printed"), [], True)
    text = both.render(CALLS[:2], [TOOL], add_generation_prompt=True, continue_final_message=False, variables={})
    assert "weather(" + CALL["arguments"] + ")" in text


def test_arguments_reach_a_template_as_it_writes_them() -> None:
    """Qwen3-Coder goes through a mapping, DeepSeek's R1 appends text: neither is escaped twice."""
    calls = CONVERSATIONS["calls"]
    assert "<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n2\n" in prompt(
        "qwen3_coder", calls
    )
    assert f"weather\n```json\n{CALL['arguments']}\n```" in prompt("deepseek_r1", calls)
    assert '{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}' in prompt("hermes3", calls)
    assert '"arguments": {"city": "Zürich", "days": 2}, "id": "call00001"}' in prompt("mistral_nemo", calls)


def test_a_template_that_goes_through_parts_gets_them() -> None:
    assert "\n\nUser: Hi, 世界\n\nAgent: <think>" in prompt("llama_guard3", CONVERSATIONS["plain"])


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_coder", "deepseek_v3_2", "gpt_oss", "mistral_nemo", "phi3_5", "gemma3"]
)
def test_what_a_developer_says_is_what_the_system_says(name: str) -> None:
    """DeepSeek V3.2's template has a word of developers, and writes nothing of what they say."""
    as_system, as_developer = prompt(name, CONVERSATIONS["system"]), prompt(name, CONVERSATIONS["developer"])
    assert "Be brief." in as_system
    assert as_developer == as_system


@pytest.mark.parametrize("name", [name for name in REAL if name in TOKENIZERS])
def test_a_prompt_has_the_tokens_that_transformers_gives_it(name: str) -> None:
    encode = PromptEncoder(tokenizer(name).backend_tokenizer, templates(name).control_tokens)
    for text in GOLDEN[name].values():
        assert encode(text, add_special_tokens=False) == tokenizer(name).encode(text, add_special_tokens=False)


def test_no_request_sets_an_argument_of_what_renders() -> None:
    functions = (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template, ChatTemplate.render)
    names = {name for function in functions for name in inspect.signature(function).parameters}
    for name in names - {"self", "kwargs", "variables"}:
        with pytest.raises(BadRequestError, match=f"`chat_template_kwargs`: cannot set `{name}`"):
            prompt("qwen3", {"messages": PLAIN, "chat_template_kwargs": {name: "x"}})


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}",
        "{{ messages | tojson(indent=2) }}{{ tools | tojson }}{{ {'b': 1, 'a': '<'} | tojson(sort_keys=true) }}",
        "{{ strftime_now('%Y') }}{{ documents is none }}{{ tools is none }}{{ bos_token }}{{ missing is defined }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "   {% if true %}\n  a\n  {% endif %}\nb\n",
    ],
)
def test_templates_find_what_transformers_gives_them(source: str) -> None:
    messages = [{"role": "user", "content": "é<"}, {"role": "assistant", "content": "b"}]
    ours = ChatTemplate(source, {"bos_token": "<s>"}).render(messages)
    assert ours == render_jinja_template([messages], chat_template=source, bos_token="<s>")[0][0]
