"""OpenAI's messages become the prompt that each model's own template makes of them, as transformers renders it."""

import inspect
import json
import os
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from headwater.openai.chat import ChatCompletionRequest
from headwater.openai.errors import BadRequestError
from headwater_engine.server.chat_template import ChatTemplate
from headwater_engine.server.encoding import PromptEncoder
from headwater_engine.server.messages import Style, learn
from tests.engine.chat_models import FIXTURES, TOKENIZERS, template, template_source, templates, tokenizer, variables

REAL = ["llama3", "llama3_1", "qwen3", "deepseek_v3", "gemma3", "gemini", "smollm2"]
OURS = ["parts", "arguments_items", "arguments_printed", "developer"]

TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a <city>.", "parameters": {}}}
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
    "parts": Style(parts=True, no_content=[]),
    "arguments_printed": Style(text_arguments=True),
    "developer": Style(developer=True),
}


def prompt(name: str, conversation: dict[str, Any]) -> str:
    """Ours, of a request's body; or what is wrong."""
    request = ChatCompletionRequest.parse(json.dumps({"model": "m", **conversation}).encode())
    try:
        return templates(name).render(
            [message.model_dump(exclude_unset=True) for message in request.messages],
            request.tools,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            variables=request.chat_template_kwargs,
        )
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
        return render_jinja_template(
            [messages],
            tools=conversation.get("tools"),
            chat_template=template_source(name),
            continue_final_message=continued,
            add_generation_prompt=not continued,
            **{**variables(name), **conversation.get("chat_template_kwargs", {})},
        )[0][0]
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
    assert expected(name, CONVERSATIONS[case]) == GOLDEN[name][case], "transformers itself has changed"
    assert prompt(name, CONVERSATIONS[case]) == GOLDEN[name][case]


@pytest.mark.parametrize("name", [*REAL, *OURS])
def test_what_a_template_wants_is_found_out(name: str) -> None:
    assert learn(template_source(name), template(name).render) == WANTED[name]


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
