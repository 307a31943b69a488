"""Whatever a chat template does, it is stopped, others are rendered meanwhile, and nothing is left of it."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from headwater.openai.errors import BadRequestError, InternalServerError, ServiceUnavailableError
from headwater_engine.errors import LoadError
from headwater_engine.server import rendering, template_process
from headwater_engine.server.rendering import Renderer

# What goes wrong does so with certain messages only: Jinja computes what is constant as it reads a template.
TEMPLATE = """
{%- set last, one = messages[-1].content, messages | length %}
{%- if last == 'hang' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{%- if last == 'spin' %}{{ (one + 2) ** (3 ** 30) }}{% endif %}
{%- if last == 'fill' %}{{ 'x' * (one * 3000000000) }}{% endif %}
{%- if last == 'write' %}{{ 'x' * (one * 70000000) }}{% endif %}
{%- if last == 'deep' %}{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}{% endif %}
{%- for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"""


@pytest.fixture
def renderers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Renderer]]:
    monkeypatch.setattr(rendering, "CPU_SECONDS", 0.5)
    made: list[Renderer] = []

    def make(template: str = TEMPLATE) -> Renderer:
        made.append(
            Renderer(
                {
                    "plain": template,
                    "with_tools": template,
                    "variables": {},
                    "added_tokens": [],
                    "hide_special_tokens": True,
                }
            )
        )
        return made[-1]

    yield make
    for renderer in made:
        renderer.close()


def chat(*contents: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": content} for content in contents],
        "tools": None,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "variables": {},
    }


async def render(renderer: Renderer, content: str) -> str:
    try:
        return await asyncio.wait_for(renderer.render(chat(content)), 120)
    except (BadRequestError, ServiceUnavailableError) as error:
        return f"{error.status} {error.message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hang", "400 The chat template failed: it needs more than"),
        ("spin", "400 The chat template failed: it needs more than"),
        ("fill", "400 The chat template failed: it needs more than 1 GiB of memory"),
        ("write", "400 The chat template failed: it wrote 700000"),
        ("deep", "400 The chat template failed: RecursionError"),
    ],
)
def test_a_template_that_does_too_much_is_stopped_and_the_next_chat_is_rendered(
    content: str, message: str, renderers: Callable[[], Renderer]
) -> None:
    renderer = renderers()

    async def both() -> tuple[str, str]:
        return await render(renderer, content), await render(renderer, "hi")

    failed, rendered = asyncio.run(both())
    assert failed.startswith(message)
    assert rendered == "[user]hi"


def test_hanging_chats_end_one_by_one_and_the_others_get_their_turn(renderers: Callable[[], Renderer]) -> None:
    renderer = renderers()

    async def all_of_them() -> list[str]:
        contents = ["hang"] * 4 + ["hi"] * 4
        return await asyncio.gather(*(render(renderer, content) for content in contents))

    assert asyncio.run(all_of_them())[4:] == ["[user]hi"] * 4
    assert len(own_processes()) <= rendering.PROCESSES


def test_more_chats_than_may_wait_are_refused(
    renderers: Callable[[], Renderer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "WAITING", 3)
    renderer = renderers()

    async def all_of_them() -> list[str]:
        contents = ["hang"] * 3 + ["hi"] * 2
        return await asyncio.gather(*(render(renderer, content) for content in contents))

    assert asyncio.run(all_of_them())[3:] == ["503 3 conversations are being rendered."] * 2


def test_a_client_that_leaves_takes_its_rendering_along(renderers: Callable[[], Renderer]) -> None:
    renderer = renderers()

    async def leave_and_ask() -> str:
        leaving = asyncio.create_task(render(renderer, "hang"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        return await render(renderer, "hi")

    assert asyncio.run(leave_and_ask()) == "[user]hi"


def test_a_process_that_is_gone_is_started_again(renderers: Callable[[], Renderer]) -> None:
    renderer = renderers()
    (process,) = own_processes()
    process.kill()
    process.wait(60)
    assert asyncio.run(render(renderer, "hi")) == "[user]hi"


def test_a_process_that_stands_still_is_given_up(
    renderers: Callable[[], Renderer], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = renderers()
    (process,) = own_processes()
    process.suspend()
    monkeypatch.setattr(rendering, "PATIENCE", 0.1)
    with pytest.raises(InternalServerError, match="gave no answer"):
        asyncio.run(render(renderer, "hi"))
    monkeypatch.undo()
    assert asyncio.run(render(renderer, "hi")) == "[user]hi"


def test_no_process_is_left(renderers: Callable[[], Renderer]) -> None:
    renderers().close()
    assert own_processes() == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for %}",
            r"The chat template cannot be used: Expected an expression, got 'end of statement block' \(line 1\)",
        ),
        ("a\n{% endif %}", r"'endif'. .*\(line 2\)"),
        ("{{ x | nofilter }}", "No filter named 'nofilter'"),
        ("{{ 'x' * 3000000000 }}{{ 3 ** (3 ** 30) }}", "it needs more than"),
    ],
)
def test_a_template_that_cannot_be_used_is_said_at_the_start(
    template: str, message: str, renderers: Callable[[str], Renderer]
) -> None:
    with pytest.raises(LoadError, match=message):
        renderers(template)
    assert own_processes() == []


def own_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "headwater_engine.server.template_process" in " ".join(child.cmdline())]


def test_a_process_whose_server_has_ended_ends_without_a_word() -> None:
    ours, its = socket.socketpair()
    command = [sys.executable, "-m", "headwater_engine.server.template_process", str(its.fileno()), "5"]
    process = subprocess.Popen(command, pass_fds=[its.fileno()], stderr=subprocess.PIPE)
    its.close()
    ours.sendall(template_process.LENGTH.pack(2) + b"{}")
    ours.close()  # nobody is there for the answer
    assert (process.communicate()[1], process.returncode) == (b"", 0)
