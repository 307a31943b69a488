"""A chat template, rendered as transformers does, in nothing but Jinja.

Templates are published to be rendered by transformers, which gives them its own `tojson`, `raise_exception`,
`strftime_now` and a tag `generation`. That is a second of imports for a few lines, which
`tests/engine/test_chat_templates.py` holds to transformers' own.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_END = "\udc01"
"""Behind the message that is to be continued. No client can send it."""


class ChatTemplate:
    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        """`variables`: such as `bos_token`. Raises jinja2.TemplateError."""
        self.source = source
        self._variables = variables
        self._template = _environment().from_string(source)

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises anything."""
        if continue_final_message:
            messages = [*messages[:-1], _with_end(messages[-1])]
        text = self._template.render(
            {
                **self._variables,
                **(variables or {}),
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut(text) if continue_final_message else text


def _with_end(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if not content:
        raise ValueError("the last message has no content to continue")
    if isinstance(content, str):
        return message | {"content": f"{content}{_END} "}
    return message | {"content": [*content[:-1], content[-1] | {"text": f"{content[-1]['text']}{_END} "}]}


def _cut(text: str) -> str:
    before, end, behind = text.rpartition(_END)
    if not end:
        raise ValueError("the template leaves out the last message, which is to be continued")
    # Where the template strips a message, it would have stripped the end of this one.
    return before if behind.startswith(" ") else before.rstrip()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for those who train; here it is its content."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own makes HTML of it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
