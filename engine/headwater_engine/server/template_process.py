"""The process that renders chat templates.

A template is a program that comes with the model, and what it does with a conversation nobody has checked: it may run
for ever or fill the memory, and neither can be stopped within a process. In this one the kernel stops it, by a limit of
memory and a timer on the CPU time of each conversation; `rendering.py` starts another.

It imports nothing but Jinja, so that it is there in a moment and small.
"""

import contextlib
import json
import resource
import signal
import socket
import struct
import sys
from functools import partial
from io import BufferedRWPair
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from headwater_engine.server.chat_template import ChatTemplate
from headwater_engine.server.messages import TOOL, Message, Style, adapted, calls_as, learn, shows_tools, takes_system
from headwater_engine.server.special_tokens import beginnings, broken, control_tokens
from headwater_engine.server.tools_in_words import EXAMPLE, calls_in_words, with_tools

MEMORY = 1 << 30
"""Bytes of the process's address space."""
LONGEST = 16 << 20
"""Characters of a prompt: several times what the longest contexts hold."""
LENGTH = struct.Struct("!Q")
"""Before each message in either direction: its bytes, which are JSON."""


def main() -> None:
    """Answers what it is told to render, until the socket is closed.

    Arguments: the socket's number, and the seconds of CPU time that a conversation may take.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ConnectionError):  # whoever asked has ended
        _answer(int(sys.argv[1]), float(sys.argv[2]))


def _answer(link_number: int, cpu_seconds: float) -> None:
    with socket.socket(fileno=link_number) as link, link.makefile("rwb") as stream:
        templates: Templates | None = None
        while (order := _read(stream)) is not None:
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            try:
                if templates is None:
                    templates = Templates(**order)
                    answer: dict[str, Any] = templates.facts()
                else:
                    answer = {"text": templates.render(**order)}
            except Exception as error:  # whatever a program may raise
                answer = {"error": _in_words(error)}
            signal.setitimer(signal.ITIMER_PROF, 0)
            data = json.dumps(answer).encode()
            stream.write(LENGTH.pack(len(data)) + data)
            stream.flush()


class Templates:
    """Of one model, of which some have one for conversations with tools."""

    def __init__(
        self,
        plain: str,
        with_tools: str,
        variables: dict[str, str],
        added_tokens: list[tuple[str, bool]],
        hide_special_tokens: bool,
    ) -> None:
        """`added_tokens`: text, and whether it is special. Raises jinja2.TemplateError."""
        self._plain = _Learned(ChatTemplate(plain, variables))
        self._with_tools = self._plain
        if with_tools != plain:
            self._with_tools = _Learned(ChatTemplate(with_tools, variables), tools=[TOOL])
        self.control_tokens = control_tokens(added_tokens, self._plain.plain_chat()) if hide_special_tokens else []
        self._beginnings = beginnings(self.control_tokens)
        render = partial(self._with_tools.template.render, tools=[TOOL])
        self.calls_as = calls_as(render, partial(render, add_generation_prompt=True), self._with_tools.style)
        self.shows_tools = shows_tools(render, self._with_tools.style)
        self._takes_system = takes_system(self._plain.template.render, self._plain.style)

    def facts(self) -> dict[str, Any]:
        """What the server wants to know of them."""
        return {
            "control_tokens": self.control_tokens,
            "calls_as": self.calls_as,
            "shows_tools": self.shows_tools,
        }

    def render(self, messages: list[Message], tools: list[dict[str, Any]] | None, **options: Any) -> str:
        """The prompt, with a BREAK in each special token that a client wrote. Raises anything."""
        template = self._with_tools if tools else self._plain
        if not self.calls_as:
            messages = calls_in_words(messages)
        if tools and not self.shows_tools:
            call = self.calls_as[0] if self.calls_as else EXAMPLE
            messages, tools = with_tools(messages, tools, call, takes_system=self._takes_system), None
        options["variables"] = broken(options["variables"], self._beginnings)
        text = template.template.render(
            broken(adapted(messages, template.style), self._beginnings),
            tools=broken(tools, self._beginnings),
            **options,
        )
        if len(text) > LONGEST:
            raise ValueError(f"it wrote {len(text)} characters; allowed are {LONGEST}")
        return text


class _Learned:
    """A template and what it wants."""

    def __init__(self, template: ChatTemplate, tools: list[dict[str, Any]] | None = None) -> None:
        self.template = template
        self.style: Style = learn(template.source, partial(template.render, tools=tools))

    def plain_chat(self) -> str:
        """What it writes around three messages (the last answer may be followed by an empty thought); else nothing."""
        roles = ("user", "assistant", "user")
        try:
            return self.template.render(adapted([{"role": role, "content": "a"} for role in roles], self.style))
        except Exception:  # it wants more than this
            return ""


def _in_words(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY >> 30} GiB of memory"
    if isinstance(error, TemplateSyntaxError):
        return f"{error.message} (line {error.lineno})"
    if isinstance(error, TemplateError | ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _read(stream: BufferedRWPair) -> dict[str, Any] | None:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return dict(json.loads(stream.read(LENGTH.unpack(head)[0])))


if __name__ == "__main__":
    main()
